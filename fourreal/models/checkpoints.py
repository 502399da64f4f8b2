"""What a checkpoint's name stands for (a bundled one, a run's folder, a folder of weights) and what it says of its model."""

import dataclasses
import difflib
import math
from pathlib import Path

from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.models.weights import CONFIG, WEIGHTS, read_config
from fourreal.serialize import from_json

BUNDLED = Path(__file__).parents[1] / "assets" / "checkpoints"
MOST_PIXELS = 2**30  # of a grid: 64 views x 64 times of 512 x 512
RUN_WEIGHTS = "weights"  # the folder of weights in a run's folder


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a folder of weights says about its model: all that sampling needs."""

    model: VideoDiTConfig
    """the base"""
    grid: GridDiTConfig | None
    """the fusion; none for a base alone"""
    views: int
    """views of a grid as trained"""
    times: int
    """times of a grid as trained"""
    size: int
    """height and width of a frame as trained, in pixels"""
    shift: float = 1.0
    """shift of the noise levels, see `fourreal.diffusion.flow`"""

    def __post_init__(self):
        least, patch = min(self.views, self.times, self.size), self.model.patch[1]
        if least < 1 or self.views * self.times * self.size**2 > MOST_PIXELS:
            raise ValueError(
                f"views {self.views}, times {self.times}, size {self.size}: give at least 1 of each, and at most "
                f"{MOST_PIXELS} pixels in all"
            )
        if self.size % patch:
            raise ValueError(f"size {self.size}: the patch of {patch} does not divide it; give a multiple of {patch}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift is {self.shift}: give a number above 0")


def weights_folder(name: str | Path) -> Path:
    """The folder of weights that `name` means; raises FileNotFoundError with the nearest known name."""
    path = Path(name)
    for folder in (path, path / RUN_WEIGHTS, BUNDLED / str(name)):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise FileNotFoundError(f"the run {path} has no weights yet: it writes them with its first checkpoint")
    bundled = sorted(folder.name for folder in BUNDLED.glob("*") if folder.is_dir())
    near = difflib.get_close_matches(str(name), bundled, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"bundled: {', '.join(bundled) or 'none'}"
    raise FileNotFoundError(
        f"there is no checkpoint '{name}': give a bundled name, a run or a folder of weights; {hint}"
    )


def describe_checkpoint(name: str | Path) -> ModelSpec:
    """Sizes and settings of a checkpoint, without its weights."""
    folder = weights_folder(name)
    values = read_config(folder)
    try:
        return from_json(ModelSpec, values)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
