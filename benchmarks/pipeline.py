"""Speed of the input pipeline: training grids per second that it reads, cuts, masks and stacks.

    python benchmarks/pipeline.py --source data/render64     # a rendered data set
    python benchmarks/pipeline.py                            # grids in memory: the pipeline without reading

A training step must not wait for its batch: compare with batch_size / step time. The time is that of one reading thread
which nothing else disturbs.
"""

import argparse
import time
from itertools import islice

import numpy as np

from fourreal.data.pipeline import PipelineConfig, grid_batches


def grids_in_memory(count: int = 64, views: int = 8, times: int = 8, size: int = 64) -> list[dict]:
    """Grids of noise, float cameras of zeros: the shapes and types of rendered ones."""
    rng = np.random.default_rng(0)
    return [
        {
            "frames": rng.integers(0, 256, (views, times, size, size, 3), dtype=np.uint8),
            "K": np.zeros((views, 3, 3), np.float32),
            "c2w": np.zeros((views, 4, 4), np.float32),
            "index": np.int64(index),
        }
        for index in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=None, help="folder of a rendered data set; grids in memory if left out")
    parser.add_argument("--kind", default="grid", choices=("grid", "clip"))
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    settings = {name: getattr(options, name) for name in ("kind", "views", "times", "batch_size", "threads")}
    if options.source is None:
        config, source = PipelineConfig(**settings), grids_in_memory()
    else:
        config, source = PipelineConfig(source=options.source, **settings), None
    batches = grid_batches(config, source=source)
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


if __name__ == "__main__":
    main()
