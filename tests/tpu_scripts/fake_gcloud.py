"""Stands in for gcloud: notes its arguments, answers from a folder that plays the cloud, and runs what goes over ssh here.

The folder CLOUD holds: `calls.jsonl`, every call's arguments; `account`; `apis`; `buckets/NAME/`, with `hierarchical` beside;
`state`, the queued resource's; `slices`, lines of "NAME<tab>STATE"; `failures.json`, [part of a command, stderr, exit code]
(code -1: no answer); `homes/SLICE-WORKER/`, the home folders of the machines; `workers`, how many
a slice has; `bin/`, commands on the machines.
"""

import json
import os
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])


def main(words: list[str]) -> None:
    """Answers one call."""
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")
    line = " ".join(words)
    for part, message, code in json.loads((CLOUD / "failures.json").read_text()):
        if part in line:
            if code == -1:
                time.sleep(60)
            fail(message, code)
    if "account" not in (CLOUD / "account").read_text():
        fail(
            "ERROR: (gcloud) You do not currently have an active account selected.\n"
            "Please run:\n\n  $ gcloud auth login\n\nto obtain new credentials.",
            1,
        )
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    names = [word for word in words if not word.startswith("--")]
    match names:
        case ["services", "list"]:
            print((CLOUD / "apis").read_text(), end="")
        case ["storage", *rest]:
            storage(rest)
        case ["compute", "tpus", "queued-resources", "create", name]:
            slices = int(options.get("node-count", 1))
            ids = [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]
            (CLOUD / "slices").write_text("".join(f"{slice}\tREADY\n" for slice in ids))
            (CLOUD / "state").write_text("ACTIVE")
        case ["compute", "tpus", "queued-resources", "delete", name]:
            (CLOUD / "homes").rename(CLOUD / f"homes-of-{time.monotonic_ns()}")
            (CLOUD / "homes").mkdir()
            (CLOUD / "state").unlink()
            (CLOUD / "slices").write_text("")
        case ["compute", "tpus", "queued-resources", "describe", name]:
            if not (CLOUD / "state").exists():
                fail(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: {name} was not found.", 1)
            failed = "failedData" in options["format"]
            print("the stock in this zone is out" if failed else (CLOUD / "state").read_text())
        case ["compute", "tpus", "tpu-vm", "list"]:
            print((CLOUD / "slices").read_text(), end="")
        case ["compute", "tpus", "queued-resources", "list"]:
            print("NAME")
        case ["compute", "tpus", "queued-resources", "ssh", _]:
            ssh(options["node"], options["worker"], options["command"])
        case _:
            fail(f"ERROR: Invalid choice: {names}", 2)


def storage(words: list[str]) -> None:
    """gcloud storage on the folders of `buckets`; as a machine's own gcloud, too."""
    import shutil  # late: most calls are quicker without it

    match words:
        case ["buckets", "describe", url]:
            if not local(url).is_dir():
                fail(f"ERROR: (gcloud.storage.buckets.describe) {url} not found: 404.", 1)
            print((CLOUD / "hierarchical").read_text())
        case ["objects", "describe", url]:
            if not local(url).exists():
                fail(f"ERROR: (gcloud.storage.objects.describe) {url} not found: 404.", 1)
            print(url)
        case ["cp", source, target]:
            source, target = (local(place) if place.startswith("gs://") else Path(place) for place in (source, target))
            if not source.exists():
                fail("ERROR: (gcloud.storage.cp) The following URLs matched no objects or files:", 1)
            if source.is_dir():
                shutil.copytree(source, target / source.name, dirs_exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        case ["ls", url]:
            found = sorted((CLOUD / "buckets").glob(url.removeprefix("gs://")))
            if not found:
                fail("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.", 1)
            print("\n".join(f"gs://{path.relative_to(CLOUD / 'buckets')}" for path in found))
        case ["cat", url]:
            sys.stdout.buffer.write(local(url).read_bytes())
        case ["rsync", source, target]:
            shutil.copytree(local(source), target, dirs_exist_ok=True)
        case _:
            fail(f"ERROR: Invalid choice: {words}", 2)


def local(url: str) -> Path:
    """The folder or file that plays a gs:// address."""
    return CLOUD / "buckets" / url.removeprefix("gs://")


def ssh(node: str, worker: str, command: str) -> None:
    """Runs the command on the machines, all at once, each with a home folder and commands of its own."""
    import subprocess  # late: most calls are quicker without it

    workers = int((CLOUD / "workers").read_text())
    slices = [line.split("\t")[0] for line in (CLOUD / "slices").read_text().splitlines()]
    chosen = slices if node == "all" else [slices[int(node)]]
    running = []
    for name in chosen:
        for number in range(workers) if worker == "all" else [int(worker)]:
            home = CLOUD / "homes" / f"{name}-{number}"
            home.mkdir(parents=True, exist_ok=True)
            path = f"{CLOUD / 'bin'}:{os.environ['SYSTEM_PATH']}"
            environment = {
                "HOME": str(home),
                "PATH": path,
                "CLOUD": str(CLOUD),
                "SYSTEM_PATH": os.environ["SYSTEM_PATH"],
            }
            running.append(subprocess.Popen(["bash", "-c", command], env=environment, cwd=home))
    sys.exit(max([process.wait() for process in running]))


def fail(message: str, code: int) -> None:
    """As gcloud fails."""
    print(message, file=sys.stderr)
    sys.exit(code)


main(sys.argv[1:])
