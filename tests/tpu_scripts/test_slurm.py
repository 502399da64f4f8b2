"""slurm.sh with stand-ins for srun and scontrol."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "tpu_scripts" / "slurm.sh"
SRUN = (
    'for word; do case $word in --output=*) log=${word#*=} ;; --*) ;; *) break ;; esac; shift; done; "$@" >>"$log" 2>&1'
)


@pytest.fixture
def job(tmp_path):
    """A function that runs the script as a job, in a checkout with a stand-in for train.py."""
    tools, checkout = tmp_path / "bin", tmp_path / "a checkout"
    for name, text in {"srun": SRUN, "scontrol": 'echo "$@" >>requeued'}.items():
        tools.mkdir(exist_ok=True)
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    checkout.mkdir()
    shutil.copy(HERE / "fake_train.py", checkout / "train.py")
    (checkout / "tiny.py").write_text("")

    def run(*words: str, training: str = "finish", **changes: str) -> subprocess.CompletedProcess:
        (tmp_path / "training").write_text(training)
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "CLOUD": str(tmp_path),
            "PYTHON": sys.executable,
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(checkout),
        }
        return subprocess.run(
            ["bash", SCRIPT, *words], env=environment | changes, cwd="/", capture_output=True, text=True, timeout=60
        )

    run.checkout, run.home = checkout, tmp_path
    return run


def started(job) -> list[list[str]]:
    """The arguments of every start of train.py."""
    return [json.loads(line) for line in (job.home / "arguments.jsonl").read_text().splitlines()]


def test_words_arrive_as_they_were_and_a_run_that_has_begun_is_resumed(job):
    for _ in range(2):
        result = job("tiny.py", "runs/my run", "--name", "it's $HOME", "")
        assert (result.returncode, result.stderr) == (0, "")
    words = ["tiny.py", "--out", "runs/my run", "--name", "it's $HOME", ""]
    assert started(job) == [words, [*words, "--resume"]]
    assert not (job.checkout / "requeued").exists()
    assert (job.checkout / "runs/my run.7.0.log").exists()


def test_a_run_that_was_stopped_queues_itself_again_a_bounded_number_of_times(job):
    (job.checkout / "train.py").write_text("print('weights: w; stopped, go on with --resume')")
    assert job("tiny.py", "runs/tiny").returncode == 0
    assert (job.checkout / "requeued").read_text() == "requeue 7\n"
    result = job("tiny.py", "runs/tiny", SLURM_RESTART_COUNT="20")
    assert result.returncode == 2 and "the job came back 20 times already" in result.stderr
    assert (job.checkout / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    "training",
    [
        "3 process 3 of 4 did not join within 300 s",
        "137 process 1 ended without a word: start all again with --resume",
        "137 Terminating process because the JAX distributed service detected fatal errors.",
    ],
)
def test_a_run_that_a_new_start_mends_queues_itself_again_a_bounded_number_of_times(job, training):
    code = int(training.split()[0])
    assert job("tiny.py", "runs/tiny", training=training).returncode == code
    assert (job.checkout / "requeued").read_text() == "requeue 7\n"
    assert job("tiny.py", "runs/tiny", training=training, SLURM_RESTART_COUNT="20").returncode == 2
    assert (job.checkout / "requeued").read_text() == "requeue 7\n"


def test_a_process_that_fails_leaves_the_others_time_for_their_own_exit_code(job):
    script = 'echo "$@" >options; exit 3'
    (job.home / "bin" / "srun").write_text(f"#!/usr/bin/env bash\n{script}\n")
    job("tiny.py", "runs/tiny")
    assert (job.checkout / "options").read_text().startswith("--kill-on-bad-exit=0 --wait=60 ")


def test_processes_get_the_cores_that_sbatch_was_asked_for(job):
    (job.home / "bin" / "srun").write_text('#!/usr/bin/env bash\nprintf %s "${SRUN_CPUS_PER_TASK:-none}" >cores\n')
    for cores, expected in (("8", "8"), ("", "none")):
        job("tiny.py", "runs/tiny", SLURM_CPUS_PER_TASK=cores)
        assert (job.checkout / "cores").read_text() == expected


def test_a_run_that_failed_stays_failed(job):
    result = job("tiny.py", "runs/tiny", training="2 fourreal train: error: no data")
    assert result.returncode == 2 and not (job.checkout / "requeued").exists()
    assert "no data" in (job.checkout / "runs/tiny.7.0.log").read_text()


@pytest.mark.parametrize(
    ("words", "changes", "expected"),
    [
        (["tiny.py", "runs/tiny"], {"SLURM_JOB_ID": ""}, "this is for sbatch"),
        (["tiny.py"], {}, "expected CONFIG and RUN_FOLDER"),
        (["none.py", "runs/tiny"], {}, "there is no config none.py"),
        (["tiny.py", "runs/tiny"], {"PYTHON": "/nowhere/python"}, "there is no /nowhere/python: run make setup"),
        (
            ["tiny.py", "runs/tiny"],
            {"SLURM_SUBMIT_DIR": "/"},
            "there is no train.py in /: run sbatch from the repository",
        ),
    ],
)
def test_bad_input_is_one_line(job, words, changes, expected):
    result = job(*words, **changes)
    assert result.returncode == 2 and expected in result.stderr and len(result.stderr.splitlines()) == 1


def test_it_explains_itself(job):
    result = job("--help")
    assert result.returncode == 0 and "sbatch --nodes=4" in result.stdout and "#SBATCH" not in result.stdout
