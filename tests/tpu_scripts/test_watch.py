"""The supervisor: every loss is made good by itself, as often as allowed, and what a retry does not mend is not retried.

A `sleep` between two looks takes no time and lets the next event happen.
"""

import pytest

PREEMPT = "echo SUSPENDED >state"
LOSE_A_SLICE = "printf 'pod\\tPREEMPTED\\n' >slices"


def end_all(then: str) -> str:
    """The event that training on every machine ends, and what the next start does."""
    return (
        "for home in homes/*/; do while [ ! -e $home/arguments.jsonl ]; do command -p sleep 0.02; done; done; "
        f"printf '{then}' >training; for pid in homes/*/fourreal/pid; do kill -TERM $(cat $pid); done; "
        "for code in homes/*/; do while [ ! -e $code/fourreal/code-of-exit ]; do command -p sleep 0.02; done; done"
    )


def kill_one() -> str:
    """The event that train.py of one machine is killed."""
    return "kill -KILL $(cat homes/pod-1/fourreal/pid); command -p sleep 0.3"


def test_from_nothing_to_a_finished_run(cloud):
    cloud.put("training", "finish")
    result = cloud.tpu("watch")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-2:] == ["runs/tiny is finished", "pod costs money until tpu.sh delete"]
    assert [len(cloud.calls(part)) for part in ("resources create", "storage cp", "worker.sh launch")] == [1, 1, 1]


@pytest.mark.parametrize("loss", [PREEMPT, LOSE_A_SLICE, "printf '' >slices"])
def test_after_a_preemption_it_creates_installs_and_resumes_with_the_code_it_began_with(cloud, loss):
    cloud.events([":", ":", f"{loss}; printf finish >training"])
    result = cloud.tpu("watch", "--then-delete")
    assert (result.returncode, result.stderr) == (0, "")
    assert "restart 1 of at most 20" in result.stdout and result.stdout.splitlines()[-1] == "pod is deleted"
    assert len(cloud.calls("resources create")) == len(cloud.calls("resources delete")) == 2
    assert len(cloud.calls("worker.sh setup")) == 2 and len(cloud.calls("storage cp")) == 1
    first, second = cloud.calls("worker.sh launch")
    assert not first[-1].endswith("--resume") and second[-1].endswith("--out runs/tiny --resume")


def test_it_waits_in_the_queue(cloud):
    cloud.put("state", "WAITING_FOR_RESOURCES")
    cloud.put("training", "finish")
    ready = "echo ACTIVE >state; printf 'pod\\tREADY\\n' >slices"
    cloud.events(
        [":"] * 20 + ["echo PROVISIONING >state", "echo ACTIVE >state; printf 'pod\\tCREATING\\n' >slices", ready]
    )
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "pod is PROVISIONING" in result.stdout
    assert cloud.calls("resources create") == []


def test_a_save_on_a_signal_is_no_end(cloud):
    cloud.events([":", end_all("finish")])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "interrupted: pod-0: stopped" in result.stdout
    assert len(cloud.trained_with(starts=2)) == 2 and len(cloud.calls("worker.sh setup")) == 1


def test_when_one_process_dies_and_the_others_hang_all_are_stopped_and_started_again(cloud):
    cloud.put("workers", "2")
    cloud.events([":", kill_one(), *[":"] * 9, "printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "torn: on 1 machines, not on 1" in result.stdout
    assert len(cloud.calls("worker.sh stop")) == 1 and len(cloud.trained_with(starts=2)) == 2


@pytest.mark.parametrize(
    "failure",
    ["2 fourreal train: error: there is no data/x", "1 fourreal train: error: step 7: loss nan", "130 stopped"],
)
def test_what_train_py_refuses_is_not_tried_again(cloud, failure):
    cloud.put("training", failure)
    result = cloud.tpu("watch", "--then-delete")
    code, message = failure.split(" ", 1)
    assert result.returncode == 1 and f"failed {code}: {message}; a restart does not mend that" in result.stderr
    assert len(cloud.calls("worker.sh launch")) == 1 and len(cloud.calls("resources delete")) == 1


def test_the_same_crash_twice_is_not_tried_a_third_time(cloud):
    cloud.put("training", "1 RuntimeError: shapes differ")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "RuntimeError: shapes differ, twice in a row" in result.stderr
    assert len(cloud.calls("worker.sh launch")) == 2


def test_restarts_are_bounded(cloud):
    cloud.settings["MAX_RESTARTS"] = "3"
    cloud.events([f"[ ! -e state ] || {PREEMPT}"] * 40)
    result = cloud.tpu("watch")
    assert result.returncode == 1
    assert "it was preempted, after 3 restarts: MAX_RESTARTS allows no more" in result.stderr
    assert len(cloud.calls("resources create")) == 4


def test_a_refused_request_ends_it(cloud):
    cloud.events([])
    cloud.put("state", "FAILED")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "pod is FAILED: the stock in this zone is out; a restart" in result.stderr
    cloud.folder.joinpath("state").unlink()
    cloud.fail("resources create", "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit exceeded")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "no quota for 1 x v5litepod-16" in result.stderr
    assert len(cloud.calls("resources create")) == 1


def test_a_passing_fault_is_borne_and_a_lasting_one_is_not(cloud):
    cloud.put("training", "finish")
    trouble = """echo '[["describe pod", "ERROR: no route", 1]]' >failures.json"""
    cloud.events([trouble, ":", "echo '[]' >failures.json"])
    assert cloud.tpu("watch").returncode == 0
    cloud.put("failures.json", '[["describe pod", "ERROR: no route", 1]]')
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "no change at 10 looks in a row" in result.stderr


def test_an_installation_that_fails_is_not_tried_for_ever(cloud):
    cloud.put("no-packages", "")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "installing failed 3 times" in result.stderr
    assert cloud.calls("worker.sh launch") == []


def test_a_pod_that_its_owner_deletes_stays_deleted(cloud):
    cloud.events([":", "rm -f state; printf '' >slices"])
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "pod was deleted, and not by this watch" in result.stderr
    assert len(cloud.calls("resources create")) == 1
