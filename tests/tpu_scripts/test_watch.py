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


ENDED = "while [ ! -e homes/pod-0/fourreal/code-of-exit ]; do command -p sleep 0.02; done"
CRASH = f"kill -KILL $(cat homes/pod-0/fourreal/pid); {ENDED}"
CHECKPOINT = "buckets/my-bucket/runs/tiny/checkpoints/10"


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
    cloud.events([":", f"{kill_one()}; printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "torn: on 1 machines, not on 1" in result.stdout
    assert len(cloud.calls("worker.sh stop")) == 1 and len(cloud.trained_with(starts=2)) == 2
    assert "restart 1 of at most 20" in result.stdout and "restart 2" not in result.stdout


def at_step(step: int) -> str:
    """The event that the first machine's progress bar comes to a step."""
    return f"printf '\r 1%%|#   | {step}/1000 [00:07<09:00, 1.00s/step]' >>homes/pod-0/fourreal/train.log"


def test_a_run_whose_step_does_not_move_is_killed_and_started_again(cloud):
    cloud.put("workers", "2")
    cloud.settings |= {"POLL_SECONDS": "1", "STALL_SECONDS": "5"}
    stop = "for pid in homes/*/fourreal/pid; do kill -STOP $(cat $pid); done"
    cloud.events([":", at_step(7), *[":"] * 3, f"{stop}; printf finish >training"])
    result = cloud.tpu("watch")
    assert (result.returncode, result.stderr) == (0, "")
    assert "restart 1 of at most 20" in result.stdout and "restart 2" not in result.stdout
    assert len(cloud.calls("worker.sh stop")) == 1 and len(cloud.trained_with(starts=2)) == 2


def test_a_run_whose_step_moves_goes_on(cloud):
    cloud.settings["STALL_SECONDS"] = "120"
    cloud.events([":", *(at_step(step // 2) for step in range(6)), end_all("finish")])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and cloud.calls("worker.sh stop") == []
    assert result.stdout.count("running: on 1 machines") == 1


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


def test_what_train_py_says_a_new_start_mends_is_tried_again_though_it_comes_again(cloud):
    cloud.put("training", "3 fourreal train: error: process 3 of 4 did not join within 300 s")
    cloud.events([":", ENDED, ENDED, f"{ENDED}; printf finish >training"])
    result = cloud.tpu("watch")
    assert (result.returncode, result.stderr) == (0, "")
    assert "restart 3 of at most 20" in result.stdout


@pytest.mark.parametrize(
    "crash", ["1 RuntimeError: shapes differ", "1 fourreal train: error: process 1 of 2 on pod-1: shapes differ"]
)
def test_the_same_crash_twice_is_not_tried_a_third_time(cloud, crash):
    cloud.put("training", crash)
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "shapes differ, twice in a row" in result.stderr
    assert len(cloud.calls("worker.sh launch")) == 2


def test_the_crash_of_one_host_counts_and_not_what_the_others_say_of_it(cloud):
    cloud.put("workers", "2")
    cloud.put("training", "3 fourreal train: error: process 1 of 2 on pod-1 ended without a word")
    cloud.put("training of pod-1", "1 RuntimeError: out of memory")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "pod-1: failed 1: RuntimeError: out of memory, twice in a row" in result.stderr


@pytest.mark.parametrize(
    ("between", "code"),
    [(":", 1), (f"mkdir -p {CHECKPOINT}", 1), (f"mkdir -p {CHECKPOINT}; echo >{CHECKPOINT}/files.json", 0)],
    ids=["nothing", "half_a_checkpoint", "checkpoint"],
)
def test_the_same_crash_is_tried_again_where_the_run_has_advanced_since(cloud, between, code):
    cloud.events([":", ":", CRASH, between, f"{CRASH}; printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == code and "restart 1 of at most 20" in result.stdout, result
    assert ("failed 137: train.py died of signal 9, twice in a row" in result.stderr) == bool(code)
    assert ("restart 2 of at most 20" in result.stdout) != bool(code)


def test_a_launch_that_reached_nobody_is_no_second_crash(cloud):
    unreachable = """echo '[["worker.sh launch", "ERROR: no route", 1]]' >failures.json"""
    cloud.put("training", "1 RuntimeError: the chip is hot")
    cloud.events([":", f"{ENDED}; {unreachable}", "echo '[]' >failures.json; printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "it will be tried again" in result.stdout, result


def test_checkpoints_that_cannot_be_listed_are_asked_for_again(cloud):
    unreachable = """echo '[["storage ls", "ERROR: no route", 1]]' >failures.json"""
    cloud.put("training", "1 RuntimeError: the chip is hot")
    cloud.events([":", f"{ENDED}; {unreachable}", "echo '[]' >failures.json; printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and len(cloud.calls("worker.sh launch")) == 2, result
    assert "restart 1 of at most 20" in result.stdout and "restart 2" not in result.stdout


def test_restarts_are_bounded(cloud):
    cloud.settings["MAX_RESTARTS"] = "3"
    cloud.events([f"[ ! -e state ] || {PREEMPT}"] * 40)
    result = cloud.tpu("watch")
    assert result.returncode == 1
    assert "it was preempted, after 3 restarts: MAX_RESTARTS allows no more" in result.stderr
    assert len(cloud.calls("resources create")) == 4


def requested(cloud) -> list[int]:
    """How many slices each request asked for."""
    counts = [[word for word in call if word.startswith("--node-count=")] for call in cloud.calls("resources create")]
    return [int(count[0].split("=")[1]) if count else 1 for count in counts]


def test_what_stays_in_the_queue_is_asked_for_with_fewer_slices_and_after_the_next_loss_with_all(cloud):
    cloud.settings |= {"SLICES": "3", "MIN_SLICES": "2", "FEWER_AFTER": "300"}
    cloud.put("state", "WAITING_FOR_RESOURCES")
    cloud.events([":"] * 6 + [f"{PREEMPT}; printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "asking for fewer: 2 x v5litepod-16" in result.stdout, result
    assert requested(cloud) == [2, 3]


def test_what_is_refused_is_asked_for_with_fewer_slices_down_to_the_least(cloud):
    cloud.settings |= {"SLICES": "4", "MIN_SLICES": "2"}
    cloud.fail("node-count", "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit exceeded")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "no quota for 2 x v5litepod-16" in result.stderr
    assert requested(cloud) == [4, 3, 2]


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


def test_a_fault_while_the_lost_pod_is_created_anew_is_borne(cloud):
    fault = """echo '[["resources create", "ERROR: no route", 1]]' >failures.json"""
    cloud.events([":", f"{PREEMPT}; {fault}; printf finish >training", *[":"] * 3, "echo '[]' >failures.json"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and len(cloud.calls("resources create")) > 2, result


def test_a_request_that_never_gets_through_ends_it(cloud):
    cloud.fail("resources create", "ERROR: no route")
    result = cloud.tpu("watch")
    assert result.returncode == 1 and "no change at 10 looks in a row (it could not be created)" in result.stderr
    assert len(cloud.calls("resources create")) == 10


def test_a_deletion_that_happens_though_its_answer_is_lost_is_its_own(cloud):
    silent = """echo '[["resources delete", "ERROR: no route", 1]]' >failures.json"""
    deleted = (
        "kill -KILL $(cat homes/*/fourreal/pid); mv homes homes-gone; mkdir homes; rm state; echo '[]' >failures.json"
    )
    cloud.events([":", f"{PREEMPT}; {silent}; printf finish >training", "echo DELETING >state", deleted])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and "unsettled: pod is DELETING" in result.stdout, result
    assert len(cloud.calls("resources create")) == 2


def test_an_upload_that_fails_once_is_made_again(cloud):
    cloud.put("training", "finish")
    cloud.fail("storage cp", "ERROR: no route")
    cloud.events([":", "echo '[]' >failures.json"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and len(cloud.calls("storage cp")) == 2, result


def test_a_fault_after_a_stop_is_the_first_of_its_kind(cloud):
    fault = """echo '[["describe pod", "ERROR: no route", 1]]' >failures.json"""
    cloud.put("workers", "2")
    cloud.events([":", f"{kill_one()}; printf finish >training", *[":"] * 9, fault, "echo '[]' >failures.json"])
    result = cloud.tpu("watch")
    assert len(cloud.calls("worker.sh stop")) == 1 and result.returncode == 0, result


def test_troubles_before_and_after_an_installation_are_not_in_a_row(cloud):
    unsettle, settle = (f"printf 'pod\\t{state}\\n' >slices" for state in ("STARTING", "READY"))
    cloud.put("training", "1 RuntimeError: the chip is hot")
    looks = [":"] * 7
    cloud.events([unsettle, *looks, settle, f"{ENDED}; {unsettle}", *looks, f"{settle}; printf finish >training"])
    result = cloud.tpu("watch")
    assert result.returncode == 0 and result.stdout.count("unsettled: slice pod is STARTING") == 2, result


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
