"""Renders the test grids that ship with the package, so that sampling needs no renderer.

    python -m fourreal.data.render.example_grids

Each is a scene of the test split (seed 1, which no default data set uses) of 8 views x 8 times: two as a freeze-time video is
filmed, and four whose views stand far apart, of which every second view and time is kept. The files are `.npz` with the keys of
a data set's examples (see builders/grids.py).
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fourreal.data.render.assets import BUNDLED
from fourreal.data.render.renderer import bundled_assets, render_scene
from fourreal.data.render.scenes import sample_scene

FOLDER = BUNDLED.parent / "grids"
SEED = 1


class Example(NamedTuple):
    """A test grid: the number of its scene, and how it is rendered."""

    scene: int
    size: int = 64
    stride: int = 2
    """between the views and times that are kept"""
    sweep: tuple[float, float] | None = None


EXAMPLES = {
    "guard": Example(8, 128, 1, (15, 60)),
    "worker": Example(5, 128, 1, (15, 60)),
    "spearman": Example(27),
    "miner": Example(183),
    "viking": Example(467),
    "wizard": Example(151),
}


def render_example(name: str) -> dict:
    """Renders one of EXAMPLES; keys, shapes and types of a data set's examples."""
    assets, example = bundled_assets(), EXAMPLES[name]
    scene = sample_scene(SEED, "test", example.scene, assets, example.sweep)
    grid, kept = render_scene(scene, 8, 8, example.size, assets), np.s_[:: example.stride]
    per_cell = {key: grid[key][kept, kept] for key in ("frames", "depth", "subject")}
    per_view = {key: grid[key][kept] for key in ("K", "c2w")}
    return {**per_cell, **per_view, "index": np.int64(scene.index), "scene": np.array(scene.as_json())}


def write_examples(folder: Path = FOLDER) -> None:
    """Writes every example to `folder`, with the assets' licence, credits and changes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        np.savez_compressed(folder / f"{name}.npz", **render_example(name))
    for text in ("LICENSE", "CREDITS", "CHANGES"):
        shutil.copyfile(BUNDLED / text, folder / text)
    with open(folder / "CHANGES", "a") as changes:
        changes.write("\nThe .npz files in this folder are pictures of these units and grounds, rendered by\n")
        changes.write("`python -m fourreal.data.render.example_grids`; they are adaptations under the same licence.\n")


if __name__ == "__main__":
    write_examples()
