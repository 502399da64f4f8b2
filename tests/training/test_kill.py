"""A real `train.py` process is killed nine times, in a step, in a save and in an evaluation, and ends as if it never was.

What is compared with a run that nobody killed: the last checkpoint (parameters, average, optimizer, step), the weights,
`metrics.jsonl`, the TensorBoard events and the sheets, all bit for bit; only the wall times of the events are free. The order
of the examples needs no log of its own: each has other pixels, and every step's loss, written with all its digits, depends on
which examples it took.
"""

import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from orbax.checkpoint import v1 as ocp
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from fourreal.data.write import Split, write_scenes
from fourreal.scene import Scene

ROOT = Path(__file__).parents[2]
VIEWS, TIMES, SIZE = 2, 3, 4
EVAL_EVERY = 4
KILLS, PHASES = 9, ("step", "save", "evaluation")
CONFIG = f"""
from fourreal.conditions import Hints
from fourreal.scene import Cameras, Scene
from fourreal.training.config import TrainConfig
from fourreal.data.batches import PipelineConfig
from fourreal.data.sources.records import Records
from fourreal.models import VideoDiTConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="killed",
    model=VideoDiTConfig(
        width=12, depth=1, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8, conditions=(Hints(),)
    ),
    data=PipelineConfig(source=Records("SOURCE"), views={VIEWS}, times={TIMES}, batch_size=2),
    optim=OptimConfig(lr=0.01, warmup=0, accumulate=2, ema=0.5),
    steps=61,
    eval_every={EVAL_EVERY},
    eval_grids=16,
    save_every=3,  # divides neither of the others
    log_every=1,
)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A config file whose data set is on disk."""
    folder = tmp_path_factory.mktemp("kill")

    def scene(index: int) -> Scene:
        frames = np.random.default_rng(index).integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), np.uint8)
        return Scene(frames, index)

    write_scenes(folder / "grids", {"train": Split(scene, 7), "validation": Split(scene, 16)})
    (folder / "config.py").write_text(CONFIG.replace("SOURCE", str(folder / "grids")))
    return folder / "config.py"


def start(config: Path, folder: Path, *options: str, piped: bool = False) -> subprocess.Popen:
    """`train.py` in a process group of its own; what it says goes to the folder's sibling `NAME.log`, or into a pipe."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, str(ROOT / "train.py"), str(config), "--out", str(folder), *options]
    with open(folder.with_suffix(".log"), "a") as log:
        out = subprocess.PIPE if piped else log
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def phases(folder: Path) -> tuple[int, set[str]]:
    """(step, what is going on) in the process that last trained in a folder, or was when it died, by the files it leaves.

    A save goes on beside steps and evaluations. Raises OSError or ValueError while files come and go.
    """
    log, found = folder / "metrics.jsonl", set()
    if log.stat().st_mtime_ns < (folder / "config.json").stat().st_mtime_ns:
        raise ValueError("the process has written nothing yet")
    checkpoints = list((folder / "checkpoints").iterdir())
    if any(not path.name.isdigit() or not (path / "files.json").is_file() for path in checkpoints):
        found.add("save")
    last = json.loads(log.read_bytes().splitlines()[-1])
    if last["step"] % EVAL_EVERY == 0 and "train/loss" in last:
        found.add("evaluation")
    return last["step"], found or {"step"}


def kill_in(
    process: subprocess.Popen, folder: Path, wanted: str, begun: int, skipped: int, rng: random.Random
) -> set[str]:
    """Kills the process's group within a phase, `skipped` steps after its start; returns the phases that it died in."""
    deadline, first = time.monotonic() + 300, None
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0003)
        try:
            if (folder / "config.json").stat().st_mtime_ns == begun:
                continue  # still that of the process before
            step, now = phases(folder)
        except (OSError, ValueError, IndexError):
            continue
        first = step if first is None else first
        if wanted in now and step >= first + skipped:
            break
    time.sleep(rng.uniform(0, 0.004))
    assert process.poll() is None, folder.with_suffix(".log").read_text()[-2000:]
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return phases(folder)[1]


def events(folder: Path) -> list[bytes]:
    """The TensorBoard events in order, without their wall times, of the metrics of a run."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            content = data[at + 12 : at + 12 + length]
            crc = crc32c(content)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
            assert struct.unpack_from("<I", data, at + 12 + length) == (masked,)
            event = Event.FromString(content)
            assert event.wall_time > 0
            event.wall_time = 0
            found.append(event.SerializeToString())
            at += length + 16
    return found


@pytest.fixture(scope="module")
def expected(config, tmp_path_factory) -> Path:
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("runs") / "expected"
    assert start(config, folder).wait(timeout=600) == 0, folder.with_suffix(".log").read_text()[-2000:]
    return folder


@pytest.mark.slow
def test_full_disk_ends_a_run_in_one_line_and_it_goes_on_from_its_last_good_state(config, expected, tmp_path):
    folder = tmp_path / "full"
    process = start(config, folder, piped=True)
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoints/*/files.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, 1))  # no file may grow any more
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 2, said[-2000:]
    line = said.splitlines()[-1]
    assert said.count("error") == 1 and line.startswith("fourreal train: error: ") and "File too large" in line
    (done,) = re.findall(r"once that is mended, --resume goes on after (\d+) steps", line)
    assert int(done) == max(int(path.parent.name) for path in folder.glob("checkpoints/*/files.json"))
    assert start(config, folder, "--resume").wait(timeout=600) == 0, folder.with_suffix(".log").read_text()[-2000:]
    for name in ("metrics.jsonl", "weights/model.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.slow
def test_run_killed_nine_times_is_bit_for_bit_the_run_never_killed(config, expected, tmp_path):
    folder, rng = tmp_path / "killed", random.Random(0)
    died, began = [], time.monotonic()
    for number in range(KILLS):
        config_written = (folder / "config.json").stat().st_mtime_ns if number else 0
        process = start(config, folder, *["--resume"] * bool(number))
        # first in the first save, before there is any whole checkpoint
        wanted = min(PHASES, key=lambda name: (sum(name in one for one in died), rng.random())) if died else "save"
        died.append(kill_in(process, folder, wanted, config_written, rng.randrange(6) if died else 0, rng))
    counts = {name: sum(name in one for one in died) for name in PHASES}
    print(f"killed {KILLS} times within {time.monotonic() - began:.0f} s, in {counts}")
    assert min(counts.values()) >= 2
    assert start(config, folder, "--resume").wait(timeout=600) == 0, folder.with_suffix(".log").read_text()[-2000:]

    for name in ("metrics.jsonl", "config.json", "weights/model.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert events(folder) == events(expected)
    sheets = sorted(path.name for path in (expected / "sheets").iterdir())
    assert sorted(path.name for path in (folder / "sheets").iterdir()) == sheets and len(sheets) == 16
    for name in sheets:
        assert (folder / "sheets" / name).read_bytes() == (expected / "sheets" / name).read_bytes(), name
    found, wanted = (ocp.load(path / "checkpoints" / "61") for path in (folder, expected))
    assert set(found) == {"step", "params", "ema", "opt"}
    found, wanted = (dict(jax.tree_util.tree_leaves_with_path(state)) for state in (found, wanted))
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert np.asarray(found[path]).tobytes() == np.asarray(value).tobytes(), path
