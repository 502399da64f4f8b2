"""A cloud in a folder: a fake gcloud in front of PATH, machines that are home folders, and a small repository to train from."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

MACHINE = {  # the commands of a machine that this one should not run
    "sudo": 'exec "$@"',
    "hostname": 'basename "$HOME"',
    "mountpoint": '[ -L "$2" ]',
    "gcsfuse": 'echo "$@" >>"$HOME/mounts"; while [ $# -gt 2 ]; do shift; done; rmdir "$2"; ln -s "$CLOUD/buckets/$1" "$2"',
    "python3": f"""echo "$@" >>"$HOME/installs"
case "$*" in
  "-m uv venv "*) mkdir -p "$HOME/fourreal/venv/bin"; ln -s {sys.executable} "$HOME/fourreal/venv/bin/python" ;;
  *"pip install --python"*) if [ -e "$CLOUD/no-packages" ]; then echo "no package jax" >&2; exit 1; fi ;;
esac""",
}


class Cloud:
    """The fake cloud and the scripts under test."""

    def __init__(self, folder: Path, repository: Path):
        self.folder, self.repository, self.bin = folder / "cloud", folder / "a repository", folder / "bin"
        self.settings = {
            "PROJECT": "my-project",
            "ZONE": "us-west4-a",
            "BUCKET": "my-bucket",
            "NAME": "pod",
            "RUN": "tiny",
        }
        for place in (self.folder / "homes", self.folder / "bin", self.folder / "buckets" / "my-bucket", self.bin):
            place.mkdir(parents=True)
        for name, text in {
            "account": "an account",
            "apis": "tpu.googleapis.com\n",
            "hierarchical": "True",
            "slices": "",
            "failures.json": "[]",
            "training": "wait",
            "workers": "1",
            "calls.jsonl": "",
        }.items():
            self.put(name, text)
        fake = f'exec {sys.executable} -I -S {HERE / "fake_gcloud.py"} "$@"'
        for place, name, text in [
            (self.bin, "gcloud", fake),
            (self.folder / "bin", "gcloud", fake),
            *((self.folder / "bin", name, text) for name, text in MACHINE.items()),
        ]:
            (place / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (place / name).chmod(0o755)
        self.events([])
        shutil.copytree(repository, self.repository)

    def put(self, name: str, text: str) -> None:
        """Sets something about the cloud."""
        (self.folder / name).write_text(text)

    def events(self, commands: list[str]) -> None:
        """Makes `sleep`, as the scripts see it, no wait at all: the n-th runs the n-th command, in the cloud's folder."""
        lines = "".join(f"  {number}) {command} ;;\n" for number, command in enumerate(commands, 1))
        (self.bin / "sleep").write_text(
            f"#!/usr/bin/env bash\ncd {self.folder}\necho >>sleeps\ncase $(wc -l <sleeps) in\n{lines}  *) : ;;\nesac\n"
        )
        (self.bin / "sleep").chmod(0o755)

    def fail(self, part: str, message: str, code: int = 1) -> None:
        """Lets the calls that hold `part` fail so."""
        self.put("failures.json", json.dumps([[part, message, code]]))

    def write_settings(self, extra: str = "") -> None:
        """The settings file."""
        lines = [f"{name}={value}" for name, value in self.settings.items()]
        (self.repository / "tpu_scripts" / "settings.env").write_text("\n".join(lines) + f"\n{extra}\n")

    def environment(self) -> dict[str, str]:
        """What the scripts run with."""
        system = os.environ["PATH"]
        return {
            "PATH": f"{self.bin}:{system}",
            "SYSTEM_PATH": system,
            "CLOUD": str(self.folder),
            "HOME": str(self.folder),
        }

    def tpu(self, *words: str, **changes: str) -> subprocess.CompletedProcess:
        """Runs tpu.sh."""
        if not (self.repository / "tpu_scripts" / "settings.env").exists():
            self.write_settings()
        script = str(self.repository / "tpu_scripts" / "tpu.sh")
        return subprocess.run(
            [script, *words], env=self.environment() | changes, cwd="/", capture_output=True, text=True, timeout=60
        )

    def calls(self, part: str = "") -> list[list[str]]:
        """The calls of gcloud that hold `part`."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [words for words in map(json.loads, lines) if part in " ".join(words)]

    def machines(self) -> list[str]:
        """The machines that were reached."""
        return sorted(path.name for path in (self.folder / "homes").iterdir())

    def trained_with(self, machine: str = "pod-0", starts: int = 1) -> list[list[str]]:
        """The arguments of every start of train.py on a machine, once there are so many."""
        path = self.folder / "homes" / machine / "arguments.jsonl"
        deadline = time.monotonic() + 20
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= starts or time.monotonic() > deadline:
                return [json.loads(line) for line in lines]
            time.sleep(0.02)

    def close(self) -> None:
        """Ends what still trains."""
        for path in self.folder.glob("homes*/*/fourreal/pid"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory):
    """A repository with the scripts under test and a stand-in for train.py."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "tpu_scripts", folder / "tpu_scripts", ignore=shutil.ignore_patterns("settings.env"))
    shutil.copy(HERE / "fake_train.py", folder / "train.py")
    (folder / "configs").mkdir()
    for name in ("configs/tiny.py", 'configs/it\'s a "config".py', "constraints.txt", "pyproject.toml"):
        (folder / name).write_text("")
    (folder / ".gitignore").write_text("/runs/\n/out/\nsettings.env\n")
    subprocess.run(["git", "init", "--quiet", "--template="], cwd=folder, check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, small_repository):
    """A project with a bucket, where nothing has been created yet."""
    cloud = Cloud(tmp_path, small_repository)
    yield cloud
    cloud.close()
