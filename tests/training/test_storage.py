"""Runs whose folder is in a bucket, through the command line, against a server that stands for Google Cloud Storage.

What is compared with a run in a folder on a disk: the last checkpoint, the weights, the log and the sheets, bit for bit.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from object_store import ObjectStore, emptied, store_of_this_process

pytest.importorskip("tensorflow_datasets")

from etils import epath
from orbax.checkpoint import v1 as ocp

from fourreal.checkpoints.specs import weights_folder
from fourreal.checkpoints.weights import read_weights
from fourreal.cli import main
from fourreal.data.write import Split, write_scenes
from fourreal.errors import LOST, MissingFile, WriteFailed, exit_code
from fourreal.host import bucket, retry
from fourreal.host.folders import LEASE
from fourreal.parallel.layout import placed_shapes
from fourreal.scene import Scene
from fourreal.training.config import load_config, read_run
from fourreal.training.export import Export
from fourreal.training.orbax import SEAL, Checkpoints
from fourreal.training.run_folder import make_folder
from fourreal.training.storage import PREFIX, BucketStorage, folder_of_this_process

ROOT = Path(__file__).parents[2]
RUN = "gs://bucket/runs/tiny"
VIEWS, TIMES, SIZE, STEPS = 2, 3, 4, 20
CONFIG = f"""
from fourreal.training.config import TrainConfig
from fourreal.data.batches import PipelineConfig
from fourreal.models import VideoDiTConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="bucket",
    model=VideoDiTConfig(width=12, depth=1, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8),
    data=PipelineConfig(source="SOURCE", views={VIEWS}, times={TIMES}, batch_size=2),
    optim=OptimConfig(lr=0.01, warmup=0, ema=0.5),
    steps={STEPS},
    eval_every=8,
    eval_grids=2,
    save_every=3,
    log_every=1,
)
"""


@pytest.fixture(scope="module")
def server():
    """For all tests of the module."""
    with store_of_this_process() as server:
        yield server


@pytest.fixture
def store(server):
    """It, empty."""
    with emptied(server):
        yield server


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One compilation cache for all runs, as in `test_loop`."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def config(tmp_path_factory, programs) -> Path:
    """A config file beside its data set."""
    folder = tmp_path_factory.mktemp("bucket")

    def scene(index: int) -> Scene:
        return Scene(np.random.default_rng(index).integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), np.uint8), index)

    write_scenes(folder / "grids", {"train": Split(scene, 7), "validation": Split(scene, 2)})
    (folder / "config.py").write_text(CONFIG.replace("SOURCE", str(folder / "grids")))
    return folder / "config.py"


@pytest.fixture(scope="module")
def unbroken(config) -> Path:
    """The folder of a run on a disk that nobody stopped."""
    folder = config.parent / "unbroken"
    assert train(str(config), "--out", str(folder)) == 0
    return folder


def train(*options: str) -> int:
    """The exit code."""
    try:
        main([*options], verb="train")
    except SystemExit as stop:
        return stop.code
    return 0


def start(config: Path, programs: str, log: Path, *options: str, **environment: str) -> subprocess.Popen:
    """`train.py` into the bucket in a process of its own; what it says goes to `log`."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        **environment,
    }
    command = [sys.executable, str(ROOT / "train.py"), str(config), "--out", RUN, *options]
    with open(log, "a") as file:
        return subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT)


def wait_until(process: subprocess.Popen, condition) -> None:
    """Returns once `condition()` holds, or fails if the process ends before."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)


def sealed(store: ObjectStore) -> set[int]:
    """The steps of the checkpoints in the bucket that are sealed."""
    return {
        int(name.split("/")[3]) for name in list(store.objects) if name.endswith(f"/{SEAL}") and "/frozen/" not in name
    }


def in_save(store: ObjectStore) -> bool:
    """Whether a checkpoint is being written beside a sealed one."""
    there = {name.split("/")[3] for name in list(store.objects) if name.startswith("runs/tiny/checkpoints/")} - {""}
    return bool(sealed(store)) and len(there) > len(sealed(store))


def assert_same_run(store: ObjectStore, expected: Path, copy: Path) -> None:
    """`copy` gets the files of the bucket."""
    assert f"runs/tiny/{LEASE}" not in store.objects
    folder = store.copy("runs/tiny", copy)
    sheets = [f"sheets/{path.name}" for path in (expected / "sheets").iterdir()]
    for name in (
        "metrics.jsonl",
        "config.json",
        "data.sha256",
        "weights/model.safetensors",
        "weights/config.json",
        *sheets,
    ):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"18", "20"}
    found, wanted = (ocp.load(path / "checkpoints" / str(STEPS)) for path in (folder, expected))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    seals = [json.loads((path / "checkpoints" / str(STEPS) / SEAL).read_text()) for path in (folder, expected)]
    assert seals[0]["sealed"]["arrays"] == seals[1]["sealed"]["arrays"]


@pytest.mark.slow
def test_run_in_a_bucket_that_fails_now_and_then_is_the_run_on_a_disk(config, unbroken, store, tmp_path, capfd):
    count = 0

    def refuses(method: str, name: str) -> int:
        nonlocal count
        count += 1
        return 503 if count % 20 == 0 else 0

    store.refuses = refuses
    assert train(str(config), "--out", RUN) == 0
    said = capfd.readouterr()
    assert f"weights: {RUN}/weights\n" in said.out and "error" not in said.err
    assert_same_run(store, unbroken, tmp_path / "copy")
    store.refuses = lambda method, name: 0
    assert train(str(config), "--out", RUN) == 2
    assert f"error: {RUN} exists: give --resume to go on" in capfd.readouterr().err
    assert train(RUN, "--resume", "--optim.lr", "1") == 2
    assert f"error: {RUN} was trained with optim.lr 0.01, not 1.0" in capfd.readouterr().err


@pytest.mark.slow
def test_run_in_a_bucket_has_one_writer_and_killed_in_a_save_goes_on_as_if_it_never_was(
    config, unbroken, programs, store, tmp_path, capfd
):
    log = tmp_path / "log.txt"
    process = start(config, programs, log, FOURREAL_LEASE_SECONDS="4")
    wait_until(process, lambda: sealed(store))
    assert train(str(config), "--out", RUN, "--resume") == 2
    assert f"error: another process is training in {RUN} (" in capfd.readouterr().err
    with contextlib.suppress(AssertionError):  # where it is too late: the run is done
        wait_until(process, lambda: in_save(store))
    process.kill()
    process.wait()
    if process.returncode == -signal.SIGKILL:
        assert f"runs/tiny/{LEASE}" in store.objects
        assert train(RUN, "--resume") == 0
        assert "resumed after" in capfd.readouterr().out
    assert_same_run(store, unbroken, tmp_path / "copy")


@pytest.mark.slow
def test_run_in_a_bucket_that_is_killed_goes_on_from_the_hosts_disk_with_its_log(
    config, unbroken, programs, store, tmp_path, capfd
):
    """The log is in the bucket before a local checkpoint counts: the folder that it was written to goes with the process."""
    local = ("--local-every", "1", "--local-folder", str(tmp_path / "disk"))

    def newest() -> int:
        return max((int(path.stem) for path in (tmp_path / "disk").rglob("*.safetensors")), default=0)

    process = start(config, programs, tmp_path / "log.txt", *local, "--save-every", "10")
    wait_until(process, lambda: sealed(store) and max(sealed(store)) < newest())  # 11 at first, and 20 is far
    process.kill()
    process.wait()
    done = newest()
    assert train(RUN, "--resume", *local, "--save-every", "3") == 0
    assert f"resumed after {done} steps, from the hosts' own disks; " in capfd.readouterr().out
    assert not newest()
    # what a resumed run may change is written to its config
    store.write("runs/tiny/config.json", (unbroken / "config.json").read_bytes())
    assert_same_run(store, unbroken, tmp_path / "copy")


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (("--out", "gs://other/run"), 2, "there is no bucket gs://other: make it, or name another"),
        (("--out", "gs://closed/run"), 2, "gs://closed/run/lease.json: the bucket gives no permission: log in with"),
        (("--out", "gs://No/run"), 2, "'No' is no name of a bucket: name a folder as gs://BUCKET/runs/NAME"),
        (("--out", RUN, "--resume"), 2, f"there is no run in {RUN} to resume: leave --resume out"),
        (("--out", "gs://bucket/down"), LOST, "gs://bucket/down/lease.json does not answer: "),
    ],
    ids=["missing", "closed", "no name", "no run", "down"],
)
def test_bucket_that_cannot_be_used_is_one_line(config, store, capfd, options, code, line):
    store.refuses = lambda method, name: 503 if name.startswith("down") else 0
    assert train(str(config), *options) == code
    said = [one for one in capfd.readouterr().err.splitlines() if "google_auth_provider" not in one]
    assert len(said) == 1 and f"error: {'[Errno 113] ' * (code == LOST)}{line}" in said[0]
    assert not store.objects


def state(step: int) -> dict:
    kernel = np.random.default_rng(step).normal(size=(50, 50)).astype(np.float32)
    return {
        "step": jnp.int32(step),
        "params": {"kernel": jnp.asarray(kernel)},
        "frozen": {"table": jnp.arange(9.0)},
        "codec": {},
    }


@pytest.fixture
def saved(store) -> ObjectStore:
    """With checkpoints of 2, 4 and 6 steps, of which the newest two stay."""
    checkpoints = Checkpoints(RUN)
    for step in (2, 4, 6):
        checkpoints.save(step, state(step))
    checkpoints.close()
    assert sealed(store) == {4, 6}
    return store


def restored(folder: Path | str = RUN) -> int:
    """The step of the checkpoint that is restored, bit for bit."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(placed_shapes(state(6), {}))
    wanted = state(checkpoints.done)
    del wanted["codec"]
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    checkpoints.close()
    return checkpoints.done


def test_newest_checkpoint_in_a_bucket_is_restored_bit_for_bit_there_and_from_a_copy_on_a_disk_and_back(
    saved, tmp_path
):
    assert restored() == 6
    folder = saved.copy("runs/tiny", tmp_path)
    assert restored(folder) == 6
    saved.objects.clear()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        saved.write(f"runs/tiny/{path.relative_to(folder)}", path.read_bytes())
    assert restored() == 6


@pytest.mark.parametrize("name", [SEAL, "state/manifest.ocdbt", "state/_METADATA"])
def test_checkpoint_in_a_bucket_that_lacks_an_object_gives_way_to_the_one_before(saved, capsys, name):
    del saved.objects[f"runs/tiny/checkpoints/6/{name}"]
    assert restored() == 4 and sealed(saved) == {4}
    assert "the checkpoint of 6 steps is broken (" in capsys.readouterr().out


def test_checkpoint_in_a_bucket_that_is_damaged_or_refused_gives_way_to_the_one_before_and_stays(
    saved, monkeypatch, capsys
):
    monkeypatch.setattr(retry, "PAUSES", ())
    (name,) = (name for name in saved.objects if name.startswith("runs/tiny/checkpoints/6/state/ocdbt.process_0/d/"))
    saved.refuses = lambda method, asked: 403 if asked == name else 0
    assert restored() == 4 and sealed(saved) == {4, 6}
    assert "the checkpoint of 6 steps cannot be read (" in capsys.readouterr().out
    saved.refuses = lambda method, asked: 0
    assert restored() == 6
    data = saved.objects[name][1]
    saved.write(name, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert restored() == 4 and sealed(saved) == {4, 6}


def test_overwritten_run_in_a_bucket_keeps_its_compiled_programs_and_the_lease_alone(saved, config):
    for name in ("compiled/a-cache", "config.json", "weights/config.json", "log", LEASE):
        saved.write(f"runs/tiny/{name}", b"{}")
    folder = epath.Path(RUN)
    make_folder(load_config(config), folder, True, None, "fingerprint")
    kept = {f"runs/tiny/{name}" for name in ("compiled/a-cache", "config.json", "data.sha256", "identity.txt", LEASE)}
    assert set(saved.objects) == kept and read_run(folder) == load_config(config)


def test_bucket_that_does_not_answer_for_longer_is_written_to_again_before_a_save_fails(
    store, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(retry, "PAUSES", (0.01, 0.02))
    (tmp_path / "log").write_text("1")
    storage = BucketStorage(epath.Path(RUN), tmp_path, lambda: None)
    answers = [503] * 2 * (bucket.RETRIES["max_retries"] + 1)  # all tries of tensorstore, twice
    store.refuses = lambda method, name: answers.pop() if answers else 0
    storage.sync()
    assert store.objects["runs/tiny/log"][1] == b"1" and not answers
    said = capfd.readouterr().err
    assert said.count("gs://bucket/runs/tiny/log does not answer: ") == said.count(": writing again in 0.0") == 2
    checkpoints = Checkpoints(RUN, before_seal=lambda: store.__setattr__("refuses", lambda method, name: 503))
    with pytest.raises(
        WriteFailed, match=r"the checkpoint of 3 steps could not be saved: .* does not answer"
    ) as raised:
        checkpoints.save(3, state(3))
        checkpoints.check(wait=True)
    assert exit_code(raised.value) == LOST and not sealed(store)
    store.refuses = lambda method, name: 0
    checkpoints.close()


def test_files_of_this_host_are_in_the_bucket_before_a_seal_and_only_once(store, tmp_path):
    storage = BucketStorage(epath.Path(RUN), tmp_path, lambda: store.requests.append(("RENEW", "")))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text("1\n")
    (tmp_path / "half.tmp").write_text("")
    checkpoints = Checkpoints(RUN, before_seal=storage.before_seal)
    for step in (1, 2):
        checkpoints.save(step, {"step": jnp.int32(step), "params": {}, "frozen": {}, "codec": {}})
        checkpoints.check(wait=True)
    checkpoints.close()
    marks = ("runs/tiny/a/log", f"runs/tiny/checkpoints/1/{SEAL}", f"runs/tiny/checkpoints/2/{SEAL}")
    posts = [name for method, name in store.requests if (method == "POST" and name in marks) or method == "RENEW"]
    assert posts == ["", *marks[:2], "", marks[2]] and not any("half" in name for name in store.objects)
    other = BucketStorage(epath.Path(RUN), tmp_path / "other", lambda: None)
    store.write(f"runs/tiny/{LEASE}", b"")
    other.fetch()
    assert [path.name for path in (tmp_path / "other").rglob("*")] == ["a", "log"]
    with open(tmp_path / "other" / "a" / "log", "a") as log:
        log.write("2\n")
    other.sync()
    assert store.objects["runs/tiny/a/log"][1] == b"1\n2\n"


def test_folder_on_this_host_goes_in_the_end_and_with_it_what_killed_processes_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with folder_of_this_process() as other:
        (other / "log").touch()
        (tmp_path / f"{PREFIX}left").mkdir()
        (tmp_path / f"{PREFIX}left" / "log").touch()
        with folder_of_this_process() as work:
            assert set(tmp_path.iterdir()) == {other, work, tmp_path / f"{PREFIX}left"}
        with folder_of_this_process(settled=-1) as work:
            assert set(tmp_path.iterdir()) == {other, work} and (other / "log").is_file()
    assert not any(tmp_path.iterdir())


def test_weights_are_written_to_a_bucket_the_frozen_ones_once_and_copied_from_there_when_they_have_changed(
    store, tmp_path, monkeypatch
):
    for run in ("first", "resumed"):
        export = Export(BucketStorage(epath.Path(RUN), tmp_path / run, lambda: None), {})
        export.start({"a": jnp.ones(3)}, {"b": jnp.zeros(2)})
        export.close()
        assert not [path for path in (tmp_path / run).rglob("*") if path.is_file()]
    posts = [name for method, name in store.requests if method == "POST"]
    assert sum("frozen-" in name for name in posts) == 1 and posts.count("runs/tiny/weights/model.safetensors") == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store.requests.clear()
    for name in (RUN, f"{RUN}/weights", RUN):
        tensors = read_weights(weights_folder(name))
        assert {name: value.tolist() for name, value in tensors.items()} == {"a": [1, 1, 1], "b": [0, 0]}
    copies = [weights_folder(RUN)]
    for number in (0, 2):
        export = Export(BucketStorage(epath.Path(RUN), tmp_path / "again", lambda: None), {})
        export.start({"a": jnp.full(3, number)}, {"b": jnp.zeros(2)})
        export.close()
        copies.append(weights_folder(RUN))
        assert read_weights(copies[-1])["a"].tolist() == [number] * 3
    assert set((tmp_path / "cache" / "fourreal").iterdir()) == set(copies[1:])  # the newest two
    with pytest.raises(MissingFile, match="there are no weights in gs://bucket/runs"):
        weights_folder("gs://bucket/runs")
