"""Finding the place of a process in its environment, and what processes say to each other: threads stand for them here."""

import socket
import time

import pytest
from peers_in_threads import places, started, together

from fourreal.errors import LOST, FileInTheWay, MissingFile, UserError
from fourreal.host import place as places_of_processes
from fourreal.host import processes as distributed
from fourreal.host.place import COORDINATOR, COUNT, ID, TIMEOUT, Place, find_place, pod_names
from fourreal.host.processes import ALONE, Peers, gather, join

VARIABLES = {COORDINATOR: "first-host:8476", COUNT: "4", ID: "2"}


@pytest.fixture
def ended(monkeypatch) -> list:
    """The exit codes of processes that their peers ended."""
    codes = []
    monkeypatch.setattr(distributed, "GRACE", 0.2)
    monkeypatch.setattr(distributed, "FAREWELL", 0.3)
    monkeypatch.setattr(distributed, "exit_at_once", codes.append)
    monkeypatch.setattr(distributed.atexit, "register", lambda *_: None)
    yield codes
    time.sleep(1)  # their threads end meanwhile


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*VARIABLES, "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_process_without_variables_is_alone():
    assert find_place(1) is None
    assert ALONE.exchange("x", 3) == [3] and ALONE.of_first("y", lambda: 4) == 4 and ALONE.first


def test_three_variables_name_a_place(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    place = find_place(1)
    assert place == Place("first-host", 8476, 4, 2)
    assert place.coordinator == VARIABLES[COORDINATOR] and place.jax_port == 8477
    monkeypatch.setenv(COUNT, "1")
    monkeypatch.setenv(ID, "0")
    assert find_place(1) is None


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({COUNT: ""}, f"{COORDINATOR} is set, {COUNT} is not: set all of"),
        ({COORDINATOR: "first-host"}, "give host:port of process 0"),
        ({COORDINATOR: "first-host:99999"}, "give host:port of process 0"),
        ({COUNT: "four"}, f"{COUNT} is 'four': give a whole number from 1 on"),
        ({ID: "-1"}, f"{ID} is '-1': give a whole number from 0 on"),
        ({ID: "4"}, f"{ID} is 4 with {COUNT} 4: processes are numbered from 0 to 3"),
    ],
)
def test_wrong_variables_are_named(monkeypatch, changed, text):
    for name, value in (VARIABLES | changed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=text):
        find_place(1)


@pytest.mark.parametrize("value", ["0", "soon", "nan", "inf"])
def test_start_timeout_that_is_no_time_is_refused(monkeypatch, value):
    monkeypatch.setenv(TIMEOUT, value)
    with pytest.raises(ValueError, match=f"{TIMEOUT} is '{value}': give seconds"):
        distributed.start()


def test_slurm_step_of_several_tasks_is_found_and_one_of_one_task_is_alone(monkeypatch):
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}
    for name, value in (step | {"SLURM_LOCALID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert find_place(1) is None  # a batch script itself: only srun starts several
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert find_place(1) == Place("node003", 65535 - 2**12 + 1 + 7, 4, 3, local_devices=(1,))


def test_worker_of_a_pod_is_found(monkeypatch):
    from jax._src import cloud_tpu_init, clusters
    from jax._src.clusters import cloud_tpu_cluster

    for module in (cloud_tpu_init, cloud_tpu_cluster, clusters.cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    pod = {"TPU_WORKER_HOSTNAMES": "localhost,other", "TPU_WORKER_ID": "1", "TPU_SKIP_MDS_QUERY": "1"}
    slices = {"MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    for name, value in (pod | slices).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(places_of_processes, "wanted_platforms", lambda: "cpu")
    assert find_place(1) is None
    monkeypatch.setattr(places_of_processes, "wanted_platforms", lambda: "")
    place = find_place(1)
    assert (place.coordinator, place.count, place.index, place.local_devices) == ("localhost:8482", 4, 3, None)
    assert place.name(3) == "3 (slice 1, worker 1)"
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "1")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "0")
    assert find_place(1) is None  # one host


def test_workers_of_pods_are_called_as_the_cloud_does():
    assert pod_names(2, 1) == ("worker 0", "worker 1")
    assert pod_names(4, 2) == ("slice 0, worker 0", "slice 0, worker 1", "slice 1, worker 0", "slice 1, worker 1")


def test_all_know_the_values_of_all_whatever_the_order_they_come_in():
    peers = started(4)

    def exchange(one: Peers) -> list:
        time.sleep(0.02 * (one.index * 3 % 4))
        return [one.exchange("a", one.index), one.exchange("b", None), one.exchange("a", [one.index, "x"])]

    expected = [[0, 1, 2, 3], [None] * 4, [[index, "x"] for index in range(4)]]
    assert [future.result() for future in together([lambda one=one: exchange(one) for one in peers])] == [expected] * 4


def test_threads_exchange_under_names_of_their_own():
    one, other = started(2)
    calls = [lambda peers=peers, name=name: peers.exchange(name, name) for peers in (one, other) for name in "ab"]
    assert [future.result() for future in together(calls)] == [["a", "a"], ["b", "b"]] * 2


@pytest.mark.parametrize(
    "error",
    [
        UserError("no"),
        MissingFile("not there"),
        FileInTheWay("there"),
        FileNotFoundError("not there"),
        TimeoutError("late"),
        OSError(28, "No space left"),
    ],
)
def test_process_0_alone_decides_and_its_error_is_that_of_all(error):
    peers, called = started(3), []

    def decide():
        called.append(1)
        raise error

    for future in together([lambda one=one: one.of_first("x", decide) for one in peers]):
        told = future.exception()
        assert type(told) is type(error) and str(told) == str(error)
        assert getattr(told, "errno", None) == getattr(error, "errno", None)
    assert len(called) == 1
    assert [f.result() for f in together([lambda one=one: one.of_first("y", lambda: 5) for one in peers])] == [5] * 3


def test_error_of_one_process_ends_the_others_with_its_line_and_code(ended, capsys):
    peers = started(3)
    with pytest.raises(UserError, match="no data"), peers[1]:
        raise UserError("no data")
    until(lambda: len(ended) == 2)
    assert ended == [2, 2]
    line = f"\nfourreal train: error: process 1 of 3 on {socket.gethostname()}: no data\n"
    assert capsys.readouterr().err == line * 2


@pytest.mark.parametrize("hangs", [0, 2])
def test_process_that_makes_no_progress_ends_the_others_with_stacks_and_the_first_one_last(
    ended, capsys, monkeypatch, hangs
):
    peers, stacks, when = started(3), [], []
    monkeypatch.setattr(distributed.faulthandler, "dump_traceback", stacks.append)
    monkeypatch.setattr(distributed, "exit_at_once", lambda code: ended.append(code) or when.append(time.monotonic()))
    began = time.monotonic()
    peers[hangs].tell_of_hang("no progress")
    until(lambda: len(when) == 2)
    assert ended == [LOST] * 2 and len(stacks) == 2
    assert capsys.readouterr().err.count("fourreal train: error: no progress\n") == 2
    # in these threads no connection closes, so process 0 waits for as long as it ever does
    waited = [at - began > distributed.FAREWELL for at in (*when, time.monotonic())]
    assert waited == ([False, False, True] if hangs == 0 else [False, True, True])


@pytest.mark.parametrize("hangs", [0, 1])
def test_process_that_tells_of_a_hang_ends_with_its_line_and_code_where_its_main_thread_fails_meanwhile(
    ended, capsys, hangs
):
    """By a collective, because the others end."""
    peers = started(2)
    with pytest.raises(RuntimeError), peers[hangs]:
        peers[hangs].tell_of_hang("no progress")
        raise RuntimeError("a collective failed")
    until(lambda: len(ended) >= 2)
    assert set(ended) == {LOST} and "error: no progress\n" in capsys.readouterr().err


def test_process_whose_main_thread_fails_as_another_dies_says_once_which_one(ended, capsys):
    peers = started(3)
    peers[2]._leaving.set()
    for link in peers[2]._links.values():
        link._connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(RuntimeError), peers[0]:
        until(peers[0]._failed.is_set)
        raise RuntimeError("a collective failed")
    time.sleep(distributed.GRACE + distributed.FAREWELL)
    line = f"fourreal train: error: process 2 of 3 on {socket.gethostname()} ended without a word"
    assert ended == [LOST] * 2 and capsys.readouterr().err.count(line) == 2


@pytest.mark.parametrize("dead", [0, 2])
def test_connection_that_breaks_ends_the_others(ended, capsys, dead):
    peers = started(3)
    peers[dead]._leaving.set()
    for link in peers[dead]._links.values():
        link._connection.shutdown(socket.SHUT_RDWR)
    until(lambda: len(ended) == 2)
    assert ended == [LOST] * 2
    assert f"process {dead} of 3 on {socket.gethostname()} ended without a word" in capsys.readouterr().err


def test_start_of_jax_that_hangs_ends_in_one_line_and_one_that_does_not_goes_on(ended, capsys):
    peers = started(2)
    with peers[1].giving_up(0.1, "JAX did not start"):
        until(lambda: len(ended) == 1)
    assert ended == [LOST]
    line = f"process 1 of 2 on {socket.gethostname()}: JAX did not start within 0.1 s; start all again with --resume"
    assert f"fourreal train: error: {line}\n" in capsys.readouterr().err
    with peers[0].giving_up(0.3, ""):
        pass
    time.sleep(0.4)
    assert ended == [LOST]


def test_missing_processes_are_named_to_all_that_are_there():
    first, _, third, _ = places(4)
    text = rf"processes 1 and 3 of 4 did not join within 1 s \(joined: 2 on {socket.gethostname()}\)"
    for future in together([lambda: gather(first, 1), lambda: join(third, 1)]):
        with pytest.raises(TimeoutError, match=text):
            raise future.exception()


def test_missing_coordinator_is_named():
    place = places(2)[1]
    with pytest.raises(
        TimeoutError, match=f"the coordinator {place.coordinator} did not answer within 0.5 s .*refused"
    ):
        join(place, 0.5)


def test_processes_of_other_counts_or_with_the_same_number_are_refused():
    first, second, _ = places(3)
    other = Place(second.host, second.port, 5, 2)
    for future in together([lambda: gather(first, 20), lambda: join(other, 20)]):
        assert type(future.exception()) is UserError
        assert "process 2 on" in str(future.exception()) and "one of 5, process 0 as one of 3" in str(
            future.exception()
        )
    first, second, _ = places(3)
    refused = together([lambda: gather(first, 20), lambda: join(second, 20), lambda: join(second, 20)])
    assert all("two processes have the number 1" in str(future.exception()) for future in refused)


def test_port_in_use_is_named():
    first, _ = places(2)
    with socket.create_server(("", first.port)), pytest.raises(ValueError, match=f"cannot listen on port {first.port}"):
        gather(first, 1)


def test_stranger_at_the_port_keeps_nobody_out():
    first, second = places(2)

    def stranger():
        while True:
            try:
                with socket.create_connection(("localhost", first.port)) as connection:
                    return connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            except ConnectionRefusedError:
                time.sleep(0.01)

    done = together([lambda: gather(first, 20), stranger, lambda: (time.sleep(0.3), join(second, 20))[1]])
    assert done[0].result().hosts == done[2].result().hosts == (socket.gethostname(),) * 2


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
