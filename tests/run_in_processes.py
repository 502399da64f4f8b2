"""Runs of train.py in several processes on CPUs, which share one cache of compiled programs, and what they leave behind."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from fourreal.data.write import Split, write_scenes
from fourreal.models.build import fresh_params, model_table
from fourreal.parallel import layout
from fourreal.scene import Scene
from fourreal.training.config import read_run
from fourreal.training.orbax import Checkpoints
from fourreal.training.state import fresh_state

ROOT = Path(__file__).parents[1]
VIEWS, TIMES, SIZE = 2, 4, 4
STEPS = 24
CONFIG = f"""
from fourreal.training.config import TrainConfig
from fourreal.data.batches import PipelineConfig
from fourreal.data.sources.records import Records
from fourreal.models import VideoDiTConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="processes",
    model=VideoDiTConfig(width=24, depth=1, heads=2, mlp_width=32, patch=(1, 2, 2), frequency_width=8),
    data=PipelineConfig(source=Records("SOURCE"), views={VIEWS}, times={TIMES}, batch_size=4),
    optim=OptimConfig(lr=0.01, warmup=0, accumulate=2, ema=0.5),
    steps={STEPS},
    eval_every=0,
    eval_grids=2,
    save_every=6,
    log_every=1,
)
"""
MIXED = (
    "--mesh.data",
    "1",
    "--mesh.fsdp",
    "2",
    "--mesh.grid",
    "2",
)  # in 4 processes two hold other views of an example

# What XLA's collectives print, from several threads at once, so that one line may interrupt another.
GLOO = re.compile(r"\[Gloo\] Rank |is connected to|peer ranks\.|Expected number of connected peer ranks is|[\d:\s]")


def write_config(folder: Path) -> Path:
    """A config file whose data set is on disk."""

    def scene(index: int) -> Scene:
        frames = np.random.default_rng(index).integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), np.uint8)
        return Scene(frames, index)

    write_scenes(folder / "grids", {"train": Split(scene, 9), "validation": Split(scene, 2)})
    (folder / "config.py").write_text(CONFIG.replace("SOURCE", str(folder / "grids")))
    return folder / "config.py"


def free_port() -> int:
    """A port that is free, with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            try:
                second.bind(("", first.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            return first.getsockname()[1]


class Processes:
    """A script in several processes of one run; what process `i` says goes to `NAME.i.log`."""

    script = ("train.py",)

    def __init__(
        self, config: Path, folder: Path, count: int, devices: int, *options: str, started=None, **environment
    ):
        port = free_port()
        self.folder, self.processes = folder, []
        for index in range(count) if started is None else started:
            shared = {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "FOURREAL_COORDINATOR": f"localhost:{port}",
                "FOURREAL_PROCESS_COUNT": str(count),
                "FOURREAL_PROCESS_ID": str(index),
            }
            self.environment = shared | environment
            command = [sys.executable, *self.script, str(config), "--out", str(folder), *options]
            with open(self.log(index), "w") as log:
                self.processes.append(
                    subprocess.Popen(command, env=os.environ | self.environment, stdout=log, stderr=log, cwd=ROOT)
                )

    def log(self, index: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{index}.log")

    def said(self, index: int) -> str:
        """What a process said, without the progress bar."""
        return "\n".join(line for line in self.log(index).read_text().splitlines() if "step/s" not in line)

    def wait(self, seconds: float = 240) -> list[int]:
        """The exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            self.end()

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def wait_until(self, condition) -> None:
        """Returns once `condition()` holds, or fails if a process ends before."""
        deadline = time.monotonic() + 240
        while not happened(condition):
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                self.end()
                raise AssertionError("\n".join(self.said(index) for index in range(len(self.processes))))
            time.sleep(0.0005)


def happened(condition) -> bool:
    try:
        return condition()
    except (OSError, ValueError, IndexError):
        return False


def steps_of(folder: Path) -> list[int]:
    """The steps in a run's log whose lines are whole."""
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def losses_of(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def checkpoint_of(folder: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint, flat by path."""
    config = read_run(folder)
    shapes = jax.eval_shape(lambda: fresh_state(fresh_params(config.model, config.grid, 0), config))
    checkpoints = Checkpoints(folder)
    state = checkpoints.restore(layout.placed_shapes(shapes, model_table(config.model, config.grid)))
    checkpoints.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def in_save(folder: Path) -> bool:
    """Whether a checkpoint is being written beside a sealed one."""
    found = [path.name.isdigit() and (path / "files.json").is_file() for path in (folder / "checkpoints").iterdir()]
    return any(found) and not all(found)


def assert_same_run(folder: Path, expected: Path) -> None:
    """Parameters, average, optimizer, written numbers and weights, bit for bit."""
    found, wanted = checkpoint_of(folder), checkpoint_of(expected)
    assert found.keys() == wanted.keys() and {path.split("'")[1] for path in found} == {"step", "params", "ema", "opt"}
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    for name in ("metrics.jsonl", "weights/model.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
