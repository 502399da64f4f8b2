"""Speed of the input pipeline: training grids per second that it reads, cuts, masks and stacks.

    python benchmarks/pipeline.py --source data/render64     # a rendered data set
    python benchmarks/pipeline.py                            # grids in memory: the pipeline without reading
    python benchmarks/pipeline.py --size 64 256 512          # smooth grids, written to the disk first, with depth and subject

A training step must not wait for its batch: compare with batch_size / step time. The time is that of one reading thread
which nothing else disturbs.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from fourreal.conditions import Cameras
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.masks import CLIPS, CutMix
from fourreal.data.source import Source
from fourreal.data.write import Split, write_scenes
from fourreal.scene import Cameras as CameraValues
from fourreal.scene import Cut, Scene


class InMemory:
    """Grids of noise, cameras of zeros: the shapes and types of rendered ones."""

    fingerprint, partial = "noise", False

    def __init__(self, count: int = 64, views: int = 8, times: int = 8, size: int = 64):
        rng = np.random.default_rng(0)
        self.frames = rng.integers(0, 256, (count, views, times, size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.frames)

    def shape(self, i: int) -> tuple[int, int, int, int]:
        return self.frames.shape[1:5]

    def read(self, i: int, cut: Cut) -> Scene:
        views = len(cut.views)
        cameras = CameraValues(np.zeros((views, 3, 3), np.float32), np.zeros((views, 4, 4), np.float32))
        return Scene(self.frames[i][np.ix_(cut.views, cut.times)], index=i, cameras=cameras)


def smooth(i: int, size: int, side: int = 8) -> Scene:
    """A grid of smooth pictures, which compress as rendered ones do, about, with all that a rendered one has."""
    rng, cells = np.random.default_rng(i), (side, side, size, size)
    coarse = rng.integers(0, 256, (size // 16, size // 16, 3), np.uint8)
    frame = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    frame = (frame + rng.integers(0, 4, frame.shape, np.uint8)).astype(np.uint8)
    poses = CameraValues(np.zeros((side, 3, 3), np.float32), np.zeros((side, 4, 4), np.float32))
    more = {"depth": np.broadcast_to(frame[..., 0].astype(np.float16), cells), "subject": np.zeros(cells, np.uint8)}
    return Scene(np.broadcast_to(frame, (*cells, 3)), i, cameras=poses, more=more)


def measure(name: str, data: Batches, steps: int) -> None:
    """Prints one line: grids/s, CPU time and bytes of pixels a grid."""
    config, batches = data.config, data.train()
    for batch in islice(batches, config.prefetch + 2):  # held ready at the start, so not counted
        frames = batch["frames"]
    start, cpu = time.perf_counter(), time.process_time()
    for _ in islice(batches, steps):
        pass
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    batches.close()
    grids = steps * config.batch_size
    print(
        f"{name}: batch {frames.shape}, {config.threads} thread(s): {grids / wall:.1f} grids/s, "
        f"{1000 * cpu / grids:.2f} ms of CPU a grid: a core makes {frames.nbytes / len(frames) * grids / cpu / 1e6:.0f} MB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="folder of a rendered data set; grids in memory if left out")
    parser.add_argument("--size", type=int, nargs="+", help="instead: pixels a side of grids that are made and written")
    parser.add_argument("--clips", action="store_true", help="the videos and images of a base instead of grids")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    settings = {name: getattr(options, name) for name in ("views", "times", "batch_size", "threads")}
    config = PipelineConfig(**settings, cuts=CLIPS if options.clips else CutMix())
    for size in options.size or ():
        with tempfile.TemporaryDirectory() as folder:
            write_scenes(Path(folder) / "set", {"train": Split(partial(smooth, size=size), 8)})
            source = Source.from_text(f"{folder}/set")
            measure(f"{size} pixels", Batches(replace(config, source=source), (Cameras(),)), options.steps)
    if options.source:
        source = Source.from_text(options.source)
        measure(options.source, Batches(replace(config, source=source), (Cameras(),)), options.steps)
    elif not options.size:
        measure("in memory", Batches(config, (Cameras(),), scenes=InMemory()), options.steps)


if __name__ == "__main__":
    main()
