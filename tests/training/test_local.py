"""Checkpoints on the hosts' own disks: they come back bit for bit, or the run's folder takes their place."""

import dataclasses
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from peers_in_threads import started, together
from safetensors import safe_open
from scenes_in_memory import Noise

from fourreal.data.batches import PipelineConfig
from fourreal.errors import UserError
from fourreal.host.processes import Peers
from fourreal.models import VideoDiTConfig
from fourreal.parallel.digest import digests
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.training import local as module
from fourreal.training.config import TrainConfig
from fourreal.training.local import LocalCheckpoints
from fourreal.training.loop import run
from fourreal.training.optimizer import OptimConfig
from fourreal.training.run_folder import Start

RUN = Path("runs/mine")


def state(step: int, fsdp: int = 2) -> dict:
    """Arrays cut over devices, over some of them, and over none, of three types."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=fsdp), jax.local_devices()[: 2 * fsdp])
    rng = np.random.default_rng(step)
    placed = {
        "step": (np.int32(step), P()),
        "params": (rng.normal(size=(8, 6)).astype(np.float32), P(("fsdp", "data"))),
        "ema": (rng.normal(size=(8, 3)).astype(jnp.bfloat16), P("fsdp")),
        "opt": (rng.normal(size=5).astype(np.float32), P()),
    }
    made = {name: jax.device_put(x, NamedSharding(mesh, place)) for name, (x, place) in placed.items()}
    return made | {"frozen": {"table": jnp.arange(3.0)}, "codec": {}}


def shapes(fsdp: int = 2) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0, fsdp))


def saved(folder: Path, *steps: int, identity: str = "this", **options) -> LocalCheckpoints:
    local = LocalCheckpoints(str(folder), RUN, lambda: identity, **options)
    for step in steps:
        local.save(step, state(step), bad=step // 3)
    local.close()
    return local


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def assert_is(found: tuple[int, dict, int] | None, step: int) -> None:
    assert found and (found[0], found[2]) == (step, step // 3)
    wanted = state(step)
    del wanted["frozen"], wanted["codec"]  # the run's folder has them, or the config
    assert found[1].keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[1][name].sharding == x.sharding
        np.testing.assert_array_equal(found[1][name], x, err_msg=name)


def test_newest_comes_back_where_it_was_bit_for_bit_each_part_stored_once(tmp_path):
    local = saved(tmp_path, 3, 6)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert path.name == "6.safetensors"
    with safe_open(path, "numpy") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118, it is no dict
    assert stored == 4 + 4 * 48 + 2 * 24 + 4 * 5
    assert_is(local.restore(shapes(), after=5), 6)


def test_one_that_is_no_newer_than_that_of_the_runs_folder_is_deleted(tmp_path):
    assert saved(tmp_path, 6).restore(shapes(), after=6) is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["another run", "another mesh", "broken", "changed", "gone"])
def test_one_that_does_not_fit_is_left_for_the_runs_folder(tmp_path, capsys, what):
    local = saved(tmp_path, 6, identity="that" if what == "another run" else "this")
    (path,) = tmp_path.rglob("*.safetensors")
    data = path.read_bytes()
    if what == "broken":
        path.write_bytes(data[: len(data) // 2])
    elif what == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    elif what == "gone":
        path.unlink()
    local = LocalCheckpoints(str(tmp_path), RUN, lambda: "this")
    assert local.restore(shapes(4 if what == "another mesh" else 2), after=0) is None
    said = capsys.readouterr().out
    if what in ("another mesh", "changed"):
        assert said.startswith("the local checkpoint of 6 steps cannot be used (") and said.count("\n") == 1
    assert not files(tmp_path)


def test_one_that_cannot_be_written_is_said_and_leaves_the_one_before(tmp_path, capsys, monkeypatch):
    def full(path, *_):
        path.with_name(f"{path.name}.tmp").touch()
        raise OSError(28, "No space left on device")

    local = saved(tmp_path, 3)
    monkeypatch.setattr(module, "write_tensors", full)
    saved(tmp_path, 6)
    line = "the local checkpoint of 6 steps could not be saved (process 0 of 1: [Errno 28] No space left on device)\n"
    assert capsys.readouterr().out == line and files(tmp_path) == ["3.safetensors"]
    assert_is(local.restore(shapes(), after=0), 3)


def test_one_whose_reading_killed_a_process_is_not_read_again(tmp_path, monkeypatch):
    local = saved(tmp_path, 6)
    monkeypatch.setattr(
        module, "safe_open", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )  # as if it were killed
    monkeypatch.setattr(local, "_steps", lambda: [6])
    with pytest.raises(KeyboardInterrupt):
        local.restore(shapes(), after=0)
    monkeypatch.undo()
    assert files(tmp_path) == ["6.reading"]
    assert local.restore(shapes(), after=0) is None and not files(tmp_path)


def test_what_processes_left_on_this_host_that_are_elsewhere_now_goes(tmp_path):
    saved(tmp_path, 6)
    (run,) = tmp_path.iterdir()
    for index in (1, 2, 3):
        (run / str(index)).mkdir()
        (run / str(index) / "6.safetensors").touch()
    peers = Peers(0, ("here", "here", "there"))
    peers.exchange = lambda name, value=None: [value]
    LocalCheckpoints(str(tmp_path), RUN, lambda: "this", peers).restore(shapes(), after=0)
    assert sorted(path.name for path in run.iterdir()) == ["0", "1"]


def test_processes_whose_files_differ_or_of_which_one_is_damaged_all_take_the_runs_folder(
    tmp_path, capsys, monkeypatch
):
    """Each with a whole copy of the arrays, as along the mesh's axis data: threads stand for two."""
    one_at_a_time = threading.Lock()  # programs of several devices would wait for each other

    def digests_of(tree):
        with one_at_a_time:
            return {name: int(digest) for name, digest in digests(tree).items()}

    monkeypatch.setattr(module, "digests", digests_of)
    for seeds, damages, why in (((6, 7), False, "different states"), ((6, 6), True, "damaged")):
        tiers = [LocalCheckpoints(str(tmp_path / str(peers.index)), RUN, lambda: "this", peers) for peers in started(2)]
        together(
            [
                lambda tier=tier, seed=seed: tier.save(6, state(seed), 0) or tier.close()
                for tier, seed in zip(tiers, seeds, strict=True)
            ]
        )
        if damages:
            (path,) = (tmp_path / "1").rglob("*.safetensors")
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
        found = together([lambda tier=tier: tier.restore(shapes(), after=0) for tier in tiers])
        assert [future.result() for future in found] == [None, None]
        assert capsys.readouterr().out.count(why) == 2 and not files(tmp_path)


def test_folder_that_cannot_be_made_or_is_in_a_bucket_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "file").touch()
    for folder in (str(tmp_path / "file"), "gs://bucket/local"):
        with pytest.raises(UserError, match="local_folder"):
            LocalCheckpoints(folder, RUN, str)


CONFIG = TrainConfig(
    name="near",
    model=VideoDiTConfig(width=12, depth=1, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8),
    data=PipelineConfig(source=Noise(), views=2, times=3, batch_size=2),
    optim=OptimConfig(lr=0.01, warmup=0, accumulate=2, ema=0.5),
    steps=11,
    eval_every=1,
    eval_grids=1,
    save_every=4,
    log_every=1,
)


@pytest.mark.slow
def test_run_that_dies_goes_on_from_the_hosts_disks_as_if_it_had_not(tmp_path, capsys):
    def dying(at: int):
        def evaluator(params, done):
            if done == at:
                raise RuntimeError("as if it were killed")
            return {}, None

        return (evaluator,)

    run(CONFIG, tmp_path / "expected")
    config = dataclasses.replace(CONFIG, local_every=1, local_folder=str(tmp_path / "disk"))
    folder = tmp_path / "run"
    # 3: none is in the run's folder yet, so none is on the disk; 4 is in the folder alone
    for at, after in ((3, 0), (5, 4), (8, 7), (11, 10)):
        with pytest.raises(RuntimeError):
            run(config, folder, Start(resume=at > 3), evaluators=dying(at))
        assert [int(name.split(".")[0]) for name in files(tmp_path / "disk")] == ([after] if after > 4 else [])
        capsys.readouterr()
    run(config, folder, Start(resume=True))
    assert "resumed after 10 steps, from the hosts' own disks; " in capsys.readouterr().out
    assert not files(tmp_path / "disk")
    for name in ("metrics.jsonl", "weights/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert (
        json.loads((folder / "checkpoints" / "11" / "files.json").read_text())["sealed"]["arrays"]
        == (json.loads((tmp_path / "expected" / "checkpoints" / "11" / "files.json").read_text())["sealed"]["arrays"])
    )

    run(dataclasses.replace(config, steps=5), folder, Start(overwrite=True), evaluators=dying(0))
    assert not files(tmp_path / "disk")
