"""Speed of the input pipeline: training grids per second that it reads, cuts, masks and stacks.

    python benchmarks/pipeline.py --source data/render64     # a rendered data set
    python benchmarks/pipeline.py                            # grids in memory: the pipeline without reading

A training step must not wait for its batch: compare with batch_size / step time. The time is that of one reading thread
which nothing else disturbs.
"""

import argparse
import time
from dataclasses import replace
from itertools import islice

import numpy as np

from fourreal.conditions import Cameras
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.masks import CLIPS, CutMix
from fourreal.data.source import Source
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="folder of a rendered data set; grids in memory if left out")
    parser.add_argument("--clips", action="store_true", help="the videos and images of a base instead of grids")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    settings = {name: getattr(options, name) for name in ("views", "times", "batch_size", "threads")}
    config = PipelineConfig(**settings, cuts=CLIPS if options.clips else CutMix())
    if options.source is None:
        data = Batches(config, (Cameras(),), scenes=InMemory())
    else:
        data = Batches(replace(config, source=Source.from_text(options.source)), (Cameras(),))
    batches = data.train()
    # the batches held ready at the start must not be counted
    for batch in islice(batches, config.prefetch + 2):
        shape = batch["frames"].shape
    start, cpu = time.perf_counter(), time.process_time()
    for _ in islice(batches, options.steps):
        pass
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    grids = options.steps * config.batch_size
    print(
        f"{options.source or 'in memory'}: batch {shape}, {options.threads} thread(s): "
        f"{grids / wall:.0f} grids/s, {1000 * cpu / grids:.2f} ms of CPU a grid"
    )
    batches.close()


if __name__ == "__main__":
    main()
