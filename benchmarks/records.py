"""Measures data sets on disk: a set of noise written by two processes and read back, with the memory that each process takes.

    python benchmarks/records.py --gigabytes 0.3 3 --out benchmarks/records.md

Grids of 8 x 8 frames of 128 x 128 pixels with depth, subject and cameras. Noise does not compress: the set is as large on
disk as in memory. Reading is in random order, by one thread: whole grids, then cuts of 4 x 4 cells. In brackets stands what a
core does while it works for this alone, whatever else runs. Peaks are of resident memory, and hold Python and its packages;
the files are written to --folder and deleted.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fourreal.data.records import SHARD_BYTES
from fourreal.data.sources.records import Records
from fourreal.data.write import Split, write_scenes
from fourreal.scene import Cameras, Cut, Scene

VIEWS = TIMES = 8
SIZE = 128
GRID = VIEWS * TIMES * SIZE * SIZE * 6  # bytes of frames, depth and subject
READS = 150


def make(i: int) -> Scene:
    """A grid of noise."""
    rng = np.random.default_rng(i)
    cells = (VIEWS, TIMES, SIZE, SIZE)
    more = {
        "depth": rng.integers(0, 2**14, cells, np.uint16).view(np.float16),
        "subject": rng.integers(0, 256, cells, np.uint8),
        "scene": json.dumps({"subjects": [{"unit": f"unit {i % 50}"}]}),
    }
    cameras = Cameras(np.ones((VIEWS, 3, 3), np.float32), np.ones((VIEWS, 4, 4), np.float32))
    return Scene(rng.integers(0, 256, (*cells, 3), np.uint8), i, cameras=cameras, more=more)


def peak(who: int) -> str:
    """The most memory that this process, or the largest of those it started, has had."""
    return f"{resource.getrusage(who).ru_maxrss / 1000:.0f} MB"


def write(folder: Path, gigabytes: float) -> dict[str, str]:
    """Writes the set in two processes."""
    count = round(gigabytes * 1e9 / GRID)
    began = time.monotonic()
    write_scenes(folder, {"train": Split(make, count, SHARD_BYTES // GRID)}, workers=2)
    seconds = time.monotonic() - began
    spent = os.times()
    spent = spent.user + spent.system + spent.children_user + spent.children_system
    shards = list(folder.glob("*.array_record-*"))
    return {
        "grids": f"{count}",
        "on disk": f"{sum(path.stat().st_size for path in shards) / 1e9:.2f} GB",
        "shards (largest)": f"{len(shards)} ({max(path.stat().st_size for path in shards) / 2**20:.0f} MiB)",
        "written, grids/s (a core)": f"{count / seconds:.1f} ({count / spent:.1f})",
        "peak of the parent": peak(resource.RUSAGE_SELF),
        "peak of a writer": peak(resource.RUSAGE_CHILDREN),
    }


def read(folder: Path) -> dict[str, str]:
    """Reads grids back."""
    scenes = Records(str(folder)).open("train")
    rng = np.random.default_rng(0)
    found = {}
    for name, cells in (("read whole, grids/s (a core)", 8), ("cuts of 4 x 4, grids/s (a core)", 4)):
        began, spent = time.monotonic(), time.process_time()
        for i in rng.integers(len(scenes), size=READS):
            scene = scenes.read(int(i), Cut(np.arange(cells), np.arange(cells)))
        seconds, spent = time.monotonic() - began, time.process_time() - spent
        found[name] = f"{READS / seconds:.0f} ({READS / spent:.0f})"
        if not np.array_equal(scene.frames, make(int(i)).frames[:cells, :cells]):
            raise SystemExit("what was read is not what was written")
    return found | {"peak of the reader": peak(resource.RUSAGE_SELF)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.3, 3])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/fourreal_records"), help="where the sets are written")
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument("--stage", choices=("write", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage = write(options.folder, *options.gigabytes) if options.stage == "write" else read(options.folder)
        print(json.dumps(stage))
        return
    rows = []
    for gigabytes in options.gigabytes:
        rows.append({})
        for stage in ("write", "read"):  # a process each: their peaks are their own
            command = [sys.executable, __file__, "--stage", stage, "--folder", str(options.folder)]
            done = subprocess.run(
                [*command, "--gigabytes", str(gigabytes)], stdout=subprocess.PIPE, text=True, check=True
            )
            rows[-1] |= json.loads(done.stdout)
        shutil.rmtree(options.folder)
    versions = ", ".join(f"{name} {version(name)}" for name in ("array_record", "tensorflow_datasets", "numpy"))
    lines = [
        "# Data sets on disk",
        "",
        f"`python benchmarks/records.py --gigabytes {' '.join(f'{size:g}' for size in options.gigabytes)}`, {versions}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores; load before: {os.getloadavg()[0]:.1f}.",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
