"""Renders the four test grids that ship with the package, so that sampling needs no renderer.

    python -m fourreal.data.render.example_grids

Each is a scene of the test split (seed 1, which no default data set uses), rendered as 8 x 8 views and times of 64 pixels, of
which every second is kept: 4 x 4. The files are `.npz` with the keys of a data set's examples (see builders/grids.py).
"""

import shutil
from pathlib import Path

import numpy as np

from fourreal.data.render.assets import BUNDLED
from fourreal.data.render.renderer import bundled_assets, render_scene
from fourreal.data.render.scenes import sample_scene

FOLDER = BUNDLED.parent / "grids"
SEED = 1
SCENES = {"spearman": 27, "miner": 183, "viking": 467, "wizard": 151}
STRIDE = 2


def render_example(name: str) -> dict:
    """Renders one of SCENES; keys, shapes and types of a data set's examples, 4 views x 4 times of 64 x 64."""
    assets = bundled_assets()
    scene = sample_scene(SEED, "test", SCENES[name], assets)
    grid = render_scene(scene, 8, 8, 64, assets)
    per_cell = {key: grid[key][::STRIDE, ::STRIDE] for key in ("frames", "depth", "subject")}
    per_view = {key: grid[key][::STRIDE] for key in ("K", "c2w")}
    return {**per_cell, **per_view, "index": np.int64(scene.index), "scene": np.array(scene.as_json())}


def write_examples(folder: Path = FOLDER) -> None:
    """Writes every example to `folder`, with the assets' licence, credits and changes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCENES:
        np.savez_compressed(folder / f"{name}.npz", **render_example(name))
    for text in ("LICENSE", "CREDITS", "CHANGES"):
        shutil.copyfile(BUNDLED / text, folder / text)
    with open(folder / "CHANGES", "a") as changes:
        changes.write("\nThe .npz files in this folder are pictures of these units and grounds, rendered by\n")
        changes.write("`python -m fourreal.data.render.example_grids`; they are adaptations under the same licence.\n")


if __name__ == "__main__":
    write_examples()
