"""Real processes that train or sample together on CPUs: started, killed, stopped, resumed in other numbers.

Compiling is nearly all of their time, so all share one cache of compiled programs.
"""

import errno
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from object_store import object_store
from safetensors.numpy import load_file, save_file

pytest.importorskip("tensorflow_datasets")

from run_in_processes import (
    GLOO,
    MIXED,
    SIZE,
    STEPS,
    TIMES,
    VIEWS,
    Processes,
    assert_same_run,
    in_save,
    losses_of,
    steps_of,
    write_config,
)

from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.weights import WEIGHTS, save_weights
from fourreal.cli import main
from fourreal.errors import LOST
from fourreal.models import GridDiTConfig
from fourreal.models.build import fresh_params
from fourreal.sampling.load import load_pipeline
from fourreal.serialize import to_json
from fourreal.training import orbax as checkpoint
from fourreal.training.config import load_config

pytestmark = pytest.mark.slow  # runs, killed and resumed: minutes together


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("processes"))


class Sampling(Processes):
    """Of a checkpoint."""

    script = ("sample.py", "--checkpoint")


def assert_others_ended(run: Processes, killed: int) -> None:
    """By themselves, soon, with one line that names the one that was killed.

    Process 0 holds JAX's own service: where it dies, JAX may be the faster one and abort the others in its own words.
    """
    count = len(run.processes)
    codes = run.wait(60)
    assert codes[killed] == -signal.SIGKILL
    for index in set(range(count)) - {killed}:
        said = run.said(index)
        if killed == 0 and codes[index] == -signal.SIGABRT:
            assert "the JAX distributed service detected fatal errors" in said
            continue
        assert codes[index] == LOST and "Traceback" not in said and "Check failure" not in said, said
        if killed == 0:  # JAX may have added its own lines
            said = "\n".join(line for line in said.splitlines() if line.startswith("fourreal"))
        assert said.count("error:") == 1, said
        line = f"fourreal train: error: process {killed} of {count} on {socket.gethostname()} ended without a word"
        assert line in said.splitlines()[-1]


@pytest.fixture(scope="module")
def grid_weights(config) -> Path:
    """A checkpoint whose numbers are all away from zero, beside the grid that is to be sampled."""
    folder = config.parent / "checkpoint"
    spec = ModelSpec(load_config(config).model, GridDiTConfig(), VIEWS, TIMES, (SIZE, SIZE))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), fresh_params(spec.model, spec.grid, 0))
    save_weights(folder, params, to_json(spec), dtype="float32")
    np.savez(folder / "grid.npz", frames=rng.integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory) -> Path:
    """The folder of a run that nobody stopped, in two processes; four with as many devices compute the same bits."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run = Processes(config, folder, 2, 2, *MIXED)
    assert run.wait() == [0, 0], run.said(0)
    assert "weights: " in run.said(0)
    assert not GLOO.sub("", run.said(1))
    return folder


@pytest.mark.slow
def test_run_killed_in_steps_and_saves_of_four_and_of_two_processes_is_the_run_never_killed(config, unbroken, tmp_path):
    """Whichever dies, the others end by themselves. All are started again, first as many, then fewer: always four devices."""
    folder = tmp_path / "run"

    def start(count: int, *options: str) -> Processes:
        return Processes(config, folder, count, 4 // count, *MIXED, *options)

    def kill_in_a_step(run: Processes, done: int) -> None:
        """Stops one in a step after `done`, far from the next save; once the others say that they wait, kills it."""
        count = len(run.processes)
        run.wait_until(lambda: steps_of(folder)[-1] % 6 == 2 and steps_of(folder)[-1] > done)
        run.processes[-1].send_signal(signal.SIGSTOP)
        host = socket.gethostname()
        says = re.compile(rf"process 0 of {count} on {host}: no progress for 0\.\d+ min; step (\d+), step")
        run.wait_until(lambda: any(int(step) > done for step in says.findall(run.said(0))))
        run.processes[-1].kill()
        assert_others_ended(run, count - 1)

    def kill_in_a_save(run: Processes, which: int) -> None:
        run.wait_until(lambda: in_save(folder) and "resumed after" in run.said(0))
        run.processes[which].kill()
        assert_others_ended(run, which)

    kill_in_a_step(start(4, "--watchdog-minutes", "0.02"), 6)
    kill_in_a_save(start(4, "--resume"), 0)  # the one that seals
    done = steps_of(folder)[-1]
    kill_in_a_step(start(2, "--resume", "--watchdog-minutes", "0.02"), done)
    kill_in_a_save(start(2, "--resume"), 1)
    run = start(2, "--resume")
    assert run.wait() == [0, 0], run.said(0)
    assert_same_run(folder, unbroken)


@pytest.mark.slow
def test_two_processes_go_on_from_their_own_disks_unless_one_of_them_has_lost_it(config, unbroken, tmp_path):
    folder, disk = tmp_path / "run", tmp_path / "disk"

    def there(index: int) -> list[int]:
        return sorted(int(path.stem) for path in disk.glob(f"run-*/{index}/*.safetensors"))

    def killed_after(done: int, *options: str) -> int:
        """Kills one, once both have a checkpoint of more steps on their disks than the run's folder; says of how many."""
        run = Processes(config, folder, 2, 2, *MIXED, "--local-every", "1", "--local-folder", str(disk), *options)
        run.wait_until(lambda: min(there(0)[0], there(1)[0]) > done and steps_of(folder)[-1] % 6 in (2, 3))
        run.processes[1].kill()
        assert_others_ended(run, 1)
        assert not options or ", from the hosts' own disks; " in run.said(0)
        return max(set(there(0)) & set(there(1)))

    done = killed_after(6)
    assert killed_after(done, "--resume") > done
    shutil.rmtree(next(disk.glob("run-*/1")))
    run = Processes(config, folder, 2, 2, *MIXED, "--local-every", "1", "--local-folder", str(disk), "--resume")
    assert run.wait() == [0, 0], run.said(0)
    (after,) = re.findall(r"resumed after (\d+) steps;", run.said(0))  # from the run's folder
    assert int(after) % 6 == 0 and not there(0) and not there(1)
    assert_same_run(folder, unbroken)


@pytest.mark.slow
def test_two_processes_go_on_in_a_bucket_with_a_run_that_was_copied_there(config, unbroken, tmp_path):
    with object_store() as store:
        for path in unbroken.rglob("*"):
            if path.is_file() and path.parent.name != "weights":
                store.write(f"run/{path.relative_to(unbroken)}", path.read_bytes())
        del store.objects[f"run/checkpoints/{STEPS}/files.json"]  # as a kill before the seal leaves it
        run = Processes(
            config, tmp_path / "run", 2, 2, *MIXED, "--out", "gs://bucket/run", "--resume", **store.environment
        )
        assert run.wait() == [0, 0], run.said(0)
        assert f"resumed after {STEPS - 6} steps" in run.said(0)
        assert_same_run(store.copy("run", tmp_path / "copy"), unbroken)


@pytest.mark.slow
def test_processes_go_back_together_where_what_one_of_them_wrote_is_damaged(config, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for path in (folder / "checkpoints" / str(STEPS) / "state" / "ocdbt.process_1" / "d").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    run = Processes(config, folder, 2, 2, *MIXED, "--resume")
    assert run.wait() == [0, 0], run.said(0)
    assert f"the checkpoint of {STEPS} steps cannot be read (" in run.said(0)
    assert_same_run(folder, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_process_that_hangs_is_left_by_the_others_with_their_stacks_and_an_exit_code_for_a_new_start(
    config, unbroken, tmp_path, stopped
):
    folder, count = tmp_path / "run", 4
    run = Processes(config, folder, count, 1, *MIXED, "--hang.step", "0.2")
    run.wait_until(lambda: steps_of(folder)[-1] >= 7)
    run.processes[stopped].send_signal(signal.SIGSTOP)
    others = set(range(count)) - {stopped}
    try:
        assert [run.processes[other].wait(60) for other in others] == [LOST] * 3, [run.said(other) for other in others]
        assert run.processes[stopped].poll() is None
    finally:
        run.end()
    for other in others:
        said = run.said(other)
        assert "Current thread" in said and "training/loop.py" in said and "most recent call first" in said
        assert re.search(  # the first one that noticed
            rf"\nfourreal train: error: process \d of 4 on {socket.gethostname()}: no progress for 0\.\d+ min; step \d+, "
            "[a-z ]+: start all again with --resume",
            said,
        )
    run = Processes(config, folder, 2, 2, *MIXED, "--resume")
    assert run.wait() == [0, 0], run.said(0)
    assert_same_run(folder, unbroken)


@pytest.mark.slow
def test_run_stopped_by_sigterm_to_one_process_goes_on_in_two_and_then_in_one_with_microbatches(
    config, unbroken, tmp_path
):
    folder = tmp_path / "run"
    run = Processes(config, folder, 4, 1, *MIXED)
    run.wait_until(lambda: steps_of(folder)[-1] >= 2)
    run.processes[2].terminate()
    assert run.wait() == [0] * 4, run.said(0)
    assert "stopped, go on with --resume" in run.said(0)
    stopped = steps_of(folder)[-1]
    assert 2 < stopped < STEPS and stopped == max(int(path.name) for path in (folder / "checkpoints").iterdir())

    # another mesh on other processes holds the same numbers: it writes the same weights
    weights = []
    for name, meshes in (("one", ("--mesh.fsdp", "2")), ("two", ("--mesh.data", "2"))):
        shutil.copytree(folder, tmp_path / name)
        count = 1 + (name == "two")
        run = Processes(config, tmp_path / name, count, 2 // count, *meshes, "--resume", "--steps", str(stopped))
        assert run.wait() == [0] * count, run.said(0)
        weights.append((tmp_path / name / "weights" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]

    run = Processes(config, folder, 2, 1, "--mesh.data", "2", "--resume")
    run.wait_until(lambda: steps_of(folder)[-1] >= stopped + 2)
    run.processes[0].send_signal(signal.SIGINT)
    assert run.wait() == [130, 0], run.said(0)
    again = steps_of(folder)[-1]
    assert stopped < again < STEPS
    run = Processes(config, folder, 1, 1, "--resume", "--optim.microbatch", "1")  # of a batch of 4
    assert run.wait() == [0], run.said(0)
    found, wanted = losses_of(folder), losses_of(unbroken)
    assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose([found[n] for n in wanted], list(wanted.values()), rtol=1e-6)


def test_missing_processes_are_named_by_those_that_are_there(config, tmp_path):
    run = Processes(config, tmp_path / "run", 4, 1, started=(0, 2), FOURREAL_START_TIMEOUT="15")
    codes = run.wait(60)
    for index in (0, 2):
        assert "fourreal train: error: processes 1 and 3 of 4 did not join within 15 s" in run.said(index)
        assert f"(joined: 2 on {socket.gethostname()})" in run.said(index) and "Traceback" not in run.said(index)
    assert codes == [LOST, LOST] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, LOST), (errno.ENOSPC, 2)], ids=["fault", "full_disk"])
def test_failed_write_of_training_is_for_a_new_start_to_mend_unless_the_disk_is_full(
    config, tmp_path, monkeypatch, capsys, number, code
):
    def seal(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "seal", seal)
    with pytest.raises(SystemExit) as stop:
        main([str(config), "--out", str(tmp_path / "run"), "--steps", "2"], verb="train")
    said = capsys.readouterr().err
    assert f"{os.strerror(number)}; once that is mended, --resume goes on after 0 steps" in said
    assert stop.value.code == code


def test_error_of_one_process_ends_all_with_its_line(config, tmp_path):
    run = Processes(config, tmp_path / "run", 2, 1, started=(0,))
    port = run.environment["FOURREAL_COORDINATOR"]
    other = Processes(
        config, tmp_path / "run", 2, 1, "--data.source", "nowhere", started=(1,), FOURREAL_COORDINATOR=port
    )
    assert (run.wait(60), other.wait(60)) == ([2], [2]), run.said(0)
    for index in (0, 1):
        assert "nowhere" in run.said(index).splitlines()[-1] and "Traceback" not in run.said(index)
    assert "process 1 of 2 on" in run.said(0).splitlines()[-1]


def test_grid_sampled_by_two_processes_is_that_of_one(grid_weights, tmp_path, monkeypatch):
    """Each holds half of the views and of the parameters."""
    run = Sampling(
        grid_weights, tmp_path / "out", 2, 1, "--grid", str(grid_weights / "grid.npz"), "--guidance-scale", "2"
    )
    assert run.wait(60) == [0, 0], run.said(0) + run.said(1)
    assert "open " in run.said(0) and not GLOO.sub("", run.said(1))
    with np.load(tmp_path / "out" / "grid.npz") as found:
        sampled, given = found["frames"], found["given"]
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:2])
    with np.load(grid_weights / "grid.npz") as truth:
        expected = load_pipeline(grid_weights)(truth["frames"], given, guidance_scale=2.0)
    np.testing.assert_array_equal(sampled, expected)
    assert np.ptp(sampled[~given]) > 50


def test_process_that_reads_broken_weights_ends_all_and_only_those_of_its_devices_are_read(grid_weights, tmp_path):
    tensors = load_file(grid_weights / WEIGHTS)
    tensors["base.blocks.attention.query.kernel"][:, -1] = np.nan  # in the rows of the second device
    shutil.copytree(grid_weights, tmp_path / "broken")
    save_file(tensors, tmp_path / "broken" / WEIGHTS)
    run = Sampling(tmp_path / "broken", tmp_path / "out", 2, 1, "--grid", str(grid_weights / "grid.npz"))
    assert run.wait(60) == [2, 2], run.said(0) + run.said(1)
    line = "base.blocks.attention.query.kernel holds values that are not finite"
    for index in (0, 1):
        assert line in run.said(index).splitlines()[-1] and "Traceback" not in run.said(index)
    assert "process 1 of 2 on" in run.said(0).splitlines()[-1]
    assert not (tmp_path / "out").exists()
