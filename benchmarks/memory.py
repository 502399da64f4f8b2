"""Resident memory of a training run over its steps, validations and checkpoints included.

python benchmarks/memory.py --source data/render64 --steps 2000
"""

import argparse
import tempfile
import threading
from pathlib import Path

import jax

from fourreal.conditions import Hints
from fourreal.data.batches import PipelineConfig
from fourreal.data.source import Source
from fourreal.models import VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.loop import run


def resident_mib() -> tuple[float, float]:
    """Memory of this process in RAM now: all, and without the pages of mapped files, which come and go with the cache."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))


def watch(log: Path, stopped: threading.Event, found: dict[int, tuple[float, float]]) -> None:
    """Notes the memory whenever the run has written a line."""
    while not stopped.wait(0.1):
        if log.is_file() and (lines := log.read_bytes().count(b'"train/loss"')):
            found.setdefault(lines, resident_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="data/render64")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between lines, validations and checkpoints")
    options = parser.parse_args()

    config = TrainConfig(
        name="memory",
        model=VideoDiTConfig(width=32, depth=2, heads=2, mlp_width=64, patch=(1, 8, 8), conditions=(Hints(),)),
        data=PipelineConfig(source=Source.from_text(options.source), views=2, times=3, batch_size=2),
        steps=options.steps,
        eval_every=options.every,
        eval_grids=4,
        save_every=options.every,
        log_every=options.every,
    )
    found: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        stopped = threading.Event()
        watcher = threading.Thread(target=watch, args=(Path(temporary) / "run" / "metrics.jsonl", stopped, found))
        watcher.start()
        try:
            run(config, Path(temporary) / "run")
        finally:
            stopped.set()
            watcher.join()
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}\n\n| steps | resident MiB | of it own |\n|---|---|---|"
    )
    for lines, (resident, own) in found.items():
        print(f"| {lines * options.every} | {resident:.0f} | {own:.0f} |")


if __name__ == "__main__":
    main()
