"""What the container of a cluster runs, with a stand-in for train.py, and the files that start it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"


@pytest.fixture
def pod(tmp_path):
    """A function that starts pod.sh in a checkout with the stand-in."""
    shutil.copytree(SCRIPTS, tmp_path / "code" / "tpu_scripts")
    shutil.copy(HERE / "fake_train.py", tmp_path / "code" / "train.py")

    def start(*words: str, training: str = "finish") -> subprocess.Popen:
        (tmp_path / "training").write_text(training)
        environment = {**os.environ, "HOME": str(tmp_path), "CLOUD": str(tmp_path), "PYTHON": sys.executable}
        command = [str(tmp_path / "code" / "tpu_scripts" / "pod.sh"), *words]
        return subprocess.Popen(command, env=environment, cwd="/", stderr=subprocess.PIPE, text=True)

    start.arguments = tmp_path / "arguments.jsonl"
    return start


def test_words_arrive_as_they_were_and_a_run_that_has_begun_is_resumed(pod):
    for _ in range(2):
        assert pod("tiny.py", "runs/my run", "--name", "it's $HOME").wait(60) == 0
    words = ["tiny.py", "--out", "runs/my run", "--name", "it's $HOME"]
    assert [json.loads(line) for line in pod.arguments.read_text().splitlines()] == [words, [*words, "--resume"]]


def test_a_run_that_is_asked_to_stop_saves_and_wants_to_be_started_again(pod):
    process = pod("tiny.py", "runs/tiny", training="wait")
    deadline = time.monotonic() + 60
    while not (pod.arguments.exists() and pod.arguments.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3


@pytest.mark.parametrize("code", [1, 2, 3])
def test_failures_keep_their_exit_code(pod, code):
    assert pod("tiny.py", "runs/tiny", training=f"{code} for a reason").wait(60) == code


def test_bad_input_is_one_line(pod):
    process = pod("tiny.py")
    assert process.wait(60) == 2 and "expected CONFIG and RUN_FOLDER" in process.stderr.read()


def test_job_of_the_cluster_starts_one_pod_a_machine_and_gives_up_on_what_a_restart_does_not_mend():
    job = yaml.safe_load((SCRIPTS / "gke.yaml").read_text())
    slice_job = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec = slice_job["template"]["spec"]
    (container,) = spec["containers"]
    rows, columns = map(int, spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    machines = rows * columns // container["resources"]["limits"]["google.com/tpu"]
    assert slice_job["parallelism"] == slice_job["completions"] == machines
    (rule,) = slice_job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [1, 2]  # 3 is what starting again may mend, see fourreal/errors.py
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/fourreal/data", "/fourreal/runs"} and (SCRIPTS.parent / container["args"][0]).is_file()


def test_image_installs_extras_that_exist_from_files_that_exist():
    import tomllib

    text = (SCRIPTS / "Dockerfile").read_text()
    extras = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"DEVICE=(\w+)", text)) <= extras.keys() and "train" in extras
    copied = [word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((SCRIPTS.parent / name).exists() for name in copied)
