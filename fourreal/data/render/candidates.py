"""The candidates of a split: scenes 0, 1, 2, ... as they are rendered, and why a grid is not worth keeping."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourreal.data.records import SHARD_BYTES
from fourreal.data.render.assets import Assets
from fourreal.data.render.renderer import check_shape, render_scene, sides
from fourreal.data.render.scenes import check_sweep, sample_scene
from fourreal.errors import UserError
from fourreal.metrics.pixels import moving_mask
from fourreal.scene import Cameras, Scene

LEAST_MOVING = 0.03
LEAST_SUBJECT = 0.05
MOST_CUT = 0.1
LEAST_BRIGHTNESS = 20.0


@dataclass(frozen=True)
class Candidates:
    """The candidates of one split: shape, seed, the folder of assets (None: the bundled ones), and the cameras' sweep."""

    split: str
    views: int
    times: int
    size: int | tuple[int, int]
    seed: int
    assets: Path | None = None
    sweep: tuple[float, float] | None = None

    def __post_init__(self):
        check_shape(self.views, self.times, self.size)
        check_sweep(self.sweep)
        if self.times < 2:
            raise UserError("a grid of 1 time cannot move: choose at least 2 times")

    def make(self, i: int) -> Scene | str:
        """Candidate `i`, rendered, or its flaw; its `more` has depth, subject, and the scene as JSON."""
        assets = _assets(self.assets)
        scene = sample_scene(self.seed, self.split, i, assets, self.sweep)
        grid = render_scene(scene, self.views, self.times, self.size, assets)
        if reason := flaw(grid):
            return reason
        more = {"depth": grid["depth"], "subject": grid["subject"], "scene": scene.as_json()}
        return Scene(grid["frames"], i, cameras=Cameras(grid["K"], grid["c2w"]), more=more)

    def part(self, count: int) -> int:
        """How many candidates a process makes at a time, for `count` grids: a shard at most, enough parts for 64 processes."""
        height, width = sides(self.size)
        grid = self.views * self.times * height * width * 6  # bytes of frames, depth and subject
        return max(1, min(SHARD_BYTES // grid, max(4, -(-count // 64))))


def moving_share(frames: np.ndarray) -> float:
    """The share of pixels of uint8 [v, t, h, w, 3] that move: see `metrics/pixels.py`."""
    return float(moving_mask(frames).mean())


def flaw(grid: dict[str, np.ndarray]) -> str | None:
    """Why a grid is not worth keeping: `still`, `small`, `cut` (a subject at the border), `dark`, or None."""
    subject = grid["subject"].astype(bool)
    if moving_share(grid["frames"]) < LEAST_MOVING:
        return "still"
    if subject.mean() < LEAST_SUBJECT:
        return "small"
    edge = np.concatenate([subject[..., 0, :], subject[..., -1, :], subject[..., :, 0], subject[..., :, -1]], -1)
    if edge.any(-1).mean() > MOST_CUT:
        return "cut"
    if grid["frames"][subject].mean() < LEAST_BRIGHTNESS:
        return "dark"
    return None


@functools.cache
def _assets(folder: Path | None) -> Assets:
    """Opens a folder of assets once a process."""
    return Assets(folder)
