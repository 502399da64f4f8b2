"""Measures rendering on one core: whole grids from the scene's description to pixels, depth, mask and cameras.

    OMP_NUM_THREADS=1 python benchmarks/rendering.py --out benchmarks/rendering.md

Loading the units is included. It writes a small table with the command, the versions and the machine's cores.
"""

import argparse
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fourreal.data.render.candidates import flaw, moving_share
from fourreal.data.render.renderer import bundled_assets, render_scene
from fourreal.data.render.scenes import sample_scene


def measure(size: int, grids: int, views: int = 8, times: int = 8) -> dict:
    """Renders `grids` training scenes after one to warm up; CPU time is what one core works, whatever else runs."""
    assets = bundled_assets()
    render_scene(sample_scene(1, "train", 0, assets), views, times, size, assets)
    shares, moving, flaws = [], [], 0
    spent = 0.0
    for index in range(grids):
        scene = sample_scene(0, "train", index, assets)
        before = time.process_time()
        grid = render_scene(scene, views, times, size, assets)
        spent += time.process_time() - before
        shares.append(grid["subject"].mean())
        moving.append(moving_share(grid["frames"]))
        flaws += flaw(grid) is not None
    return {
        "pixels": f"{size} x {size}",
        "frames/s": f"{grids * views * times / spent:.0f}",
        "8x8 grids/s": f"{grids / spent:.2f}",
        "rejected": f"{flaws} of {grids}",
        "subject, % of pixels (5th, 50th, 95th)": _percentiles(shares),
        "moving, % of pixels (5th, 50th, 95th)": _percentiles(moving),
    }


def _percentiles(shares: list[float]) -> str:
    return ", ".join(f"{100 * value:.0f}" for value in np.percentile(shares, [5, 50, 95]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grids", type=int, default=60, help="scenes a size")
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    rows = [measure(size, options.grids) for size in (64, 128)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("panda3d", "numpy"))
    lines = [
        "# Rendering, one core",
        "",
        f"`OMP_NUM_THREADS=1 python benchmarks/rendering.py --grids {options.grids}`, {versions}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, CPU time.",
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
