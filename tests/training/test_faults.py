"""A run whose files cannot be read, for a moment or for good, what a save reads, and a batch that the mesh does not divide:
through the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from unreadable import break_file, mend_file, open_files_broken

pytest.importorskip("tensorflow_datasets")

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from fourreal.cli import main
from fourreal.data.write import Split, write_scenes
from fourreal.errors import LOST
from fourreal.host import retry
from fourreal.scene import Scene
from fourreal.training.orbax import drop_broken
from fourreal.training.prepare import Run
from fourreal.training.state import checkpoint_bytes

pytestmark = pytest.mark.slow  # runs that compile

VIEWS, TIMES, SIZE = 2, 3, 64  # a record is larger than the reader's buffer
CONFIG = f"""
from fourreal.training.config import TrainConfig
from fourreal.data.batches import PipelineConfig
from fourreal.models import VideoDiTConfig

CONFIG = TrainConfig(
    name="faults",
    model=VideoDiTConfig(width=12, depth=1, heads=2, mlp_width=16, patch=(1, 16, 16), frequency_width=8),
    data=PipelineConfig(source="SOURCE", views={VIEWS}, times={TIMES}, batch_size=2, prefetch=2, threads=1),
    steps=6,
    eval_every=0,
    eval_grids=1,
    save_every=2,
    log_every=1,
)
"""


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """One compilation cache for all runs, as in `test_loop`."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config file beside its data set."""
    folder = tmp_path_factory.mktemp("faults")

    def scene(index: int) -> Scene:
        return Scene(np.random.default_rng(index).integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), np.uint8), index)

    write_scenes(folder / "grids", {"train": Split(scene, 7), "validation": Split(scene, 1)})
    (folder / "config.py").write_text(CONFIG.replace("SOURCE", str(folder / "grids")))
    return folder / "config.py"


@pytest.fixture(scope="module")
def unbroken(config) -> Path:
    """The folder of a run that read everything."""
    folder = config.parent / "unbroken"
    assert train(config, folder) == 0
    return folder


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Reading again costs no time."""
    monkeypatch.setattr(retry, "PAUSES", (0.01, 0.02))


def train(config: Path, folder: Path, *options: str) -> int:
    """The exit code."""
    try:
        main([str(config), "--out", str(folder), *options], verb="train")
    except SystemExit as stop:
        return stop.code
    return 0


def fail_reads(monkeypatch, last: float, fail) -> None:
    """Lets `fail(read)` take the place of reads of training records, from the ninth, in the midst of training, to the last."""
    read, count = ArrayRecordDataSource.__getitem__, 0

    def getitem(self, key):
        nonlocal count
        training = "-train." in str(self._read_instructions[0].filename)
        count += training
        return fail(lambda: read(self, key)) if training and 9 <= count <= last else read(self, key)

    monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", getitem)


def assert_same_run(folder: Path, expected: Path) -> None:
    for name in ("metrics.jsonl", "weights/model.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_record_that_cannot_be_read_for_a_moment_leaves_no_trace_in_the_run(
    config, unbroken, tmp_path, monkeypatch, capfd
):
    def fail(read):
        with open_files_broken(config.parent / "grids"):
            return read()

    fail_reads(monkeypatch, 9, fail)
    assert train(config, tmp_path / "run") == 0
    assert capfd.readouterr().err.count("Input/output error") == 1
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ("pread() failed: Input/output error; reading x", True),
        ("open() failed: No such file or directory; opening x", False),
    ],
    ids=["fault", "gone"],
)
def test_records_that_cannot_be_read_any_more_stop_a_run_for_a_new_start_to_mend(
    config, unbroken, tmp_path, monkeypatch, capfd, said, again
):
    def fail(_):
        raise RuntimeError(said)

    with monkeypatch.context() as patch:
        fail_reads(patch, np.inf, fail)
        assert train(config, tmp_path / "run") == LOST
    error = capfd.readouterr().err
    assert ("reading again in 0.02 s" in error) == again
    (line,) = [line for line in error.splitlines() if line.startswith("fourreal train: error: ")]
    assert said in line and "--resume goes on after " in line
    assert train(config, tmp_path / "run", "--resume") == 0
    assert_same_run(tmp_path / "run", unbroken)


def test_data_set_that_is_there_and_cannot_be_opened_is_no_mistake_of_the_user(config, tmp_path, capfd):
    features = config.parent / "grids" / "features.json"
    break_file(features)
    try:
        assert train(config, tmp_path / "run") == LOST
    finally:
        mend_file(features)
    assert capfd.readouterr().err.splitlines()[-1].startswith("fourreal train: error: [Errno 5] Input/output error")
    assert not (tmp_path / "run").exists()


def test_run_whose_newest_checkpoint_cannot_be_read_goes_on_from_the_one_before_and_saves_it_anew(
    config, unbroken, tmp_path, capfd
):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    break_file(folder / "checkpoints" / "6" / "files.json")
    assert train(config, folder, "--resume") == 0
    said = capfd.readouterr().out
    assert "the checkpoint of 6 steps cannot be read (" in said and "going back to the one of 4 steps; it stays" in said
    assert "resumed after 4 steps" in said
    assert (
        sorted(os.listdir(folder / "checkpoints")) == ["4", "6"]
        and drop_broken(epath.Path(folder) / "checkpoints") == 6
    )
    assert_same_run(folder, unbroken)


def test_saves_of_a_run_read_nothing_of_what_they_wrote(config, tmp_path, monkeypatch):
    """Beside the tables of orbax's own files, a few kB, and the records of the next batches."""
    save, seen = Run.save, []

    def noted(run, **options):
        before = bytes_read()
        save(run, **options)
        run.checkpoints.check(wait=True)
        run.export.check(wait=True)
        seen.append((bytes_read() - before, checkpoint_bytes(run.state)))

    monkeypatch.setattr(Run, "save", noted)
    assert train(config, tmp_path / "run", "--model.width", "240", "--model.mlp-width", "1024") == 0
    assert len(seen) == 3 and all(read < written / 50 for read, written in seen), seen


def bytes_read() -> int:
    """That this process has asked of files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_batch_that_a_mesh_of_sixteen_would_compute_sixteen_fold_is_refused_in_one_line(config, tmp_path):
    options = ("--mesh.data", "16", "--data.batch-size", "1", "--out", str(tmp_path / "run"))
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "16"}
    done = subprocess.run(
        [sys.executable, "train.py", str(config), *options],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert (
        "each example would be computed 16 times: give a multiple of 16, a smaller mesh axis, or --repeat-examples"
        in line
    )
