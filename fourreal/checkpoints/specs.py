"""What a checkpoint's name stands for (a bundled one, a run's folder, a folder of weights) and what it says of its model."""

import dataclasses
import difflib
import math
from pathlib import Path

from fourreal.checkpoints.fetch import fetched
from fourreal.checkpoints.upgrade import upgraded_spec
from fourreal.checkpoints.weights import CONFIG, WEIGHTS, read_config
from fourreal.codecs import Codec, PixelCodec
from fourreal.errors import MissingFile, UserError
from fourreal.host.folders import in_bucket
from fourreal.models.fusions import Base
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.serialize import from_json

BUNDLED = Path(__file__).parents[1] / "assets" / "checkpoints"
MOST_PIXELS = 2**30  # of a grid: 64 views x 64 times of 512 x 512
RUN_WEIGHTS = "weights"  # the folder of weights in a run's folder
STAGE_BEFORE = "low"  # within a folder of weights, that of the stage whose frames it enlarges


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a folder of weights says about its model: all that sampling needs."""

    model: VideoDiTConfig
    """the base"""
    grid: GridDiTConfig
    """the fusion"""
    views: int
    """views of a grid as trained"""
    times: int
    """times of a grid as trained"""
    size: tuple[int, int]
    """height and width of a frame as trained, in pixels"""
    shift: float = 1.0
    """shift of the noise levels, see `fourreal.diffusion.flow`"""
    codec: Codec = PixelCodec()
    """between pixels and what the model works on"""
    steps: int = 4
    """denoising steps by default"""

    def __post_init__(self):
        check_shape(self, self.views, self.times, self.size)
        if not 0 < self.shift < math.inf or self.steps < 1:
            raise UserError(f"shift is {self.shift}, steps {self.steps}: give a shift above 0 and at least 1 step")


def check_shape(spec: ModelSpec, views: int, times: int, size: tuple[int, int]) -> None:
    """Raises UserError for grids that a model cannot take: none, too many pixels, or sides that its patch does not divide."""
    height, width = size
    if min(views, times, height, width) < 1 or views * times * height * width > MOST_PIXELS:
        raise UserError(
            f"views {views}, times {times}, size {height} x {width}: give at least 1 of each, and at most {MOST_PIXELS} "
            "pixels in all"
        )
    patch, (_, down, across) = spec.model.patch[1], spec.codec.factors
    if height % (patch * down) or width % (patch * across):
        raise UserError(
            f"size {height} x {width}: the patch of {patch} does not divide it; give multiples of {patch * down} and "
            f"{patch * across}"
        )
    spec.codec.shape(times, height, width)


def check_clip(spec: ModelSpec, views: int, times: int) -> None:
    """Raises UserError for a grid that a base alone should make: it makes clips, of one view or one time."""
    if isinstance(spec.grid.make_fusion(), Base) and min(views, times) > 1:
        raise UserError(
            f"a base makes clips, not a grid of {views} views x {times} times: ask for one view or one time, or train a grid "
            "model on it (train.py ... --init-from)"
        )


def weights_folder(name: str | Path) -> Path:
    """The folder of weights that `name` means, a copy of one in a bucket; raises MissingFile with the nearest known name."""
    path = fetched(name, RUN_WEIGHTS) if in_bucket(name) else Path(name)
    for folder in (path, path / RUN_WEIGHTS, BUNDLED / str(name)):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise MissingFile(f"the run {path} has no weights yet: it writes them with its first checkpoint")
    bundled = sorted(folder.name for folder in BUNDLED.glob("*") if folder.is_dir())
    near = difflib.get_close_matches(str(name), bundled, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"bundled: {', '.join(bundled) or 'none'}"
    raise MissingFile(f"there is no checkpoint '{name}': give a bundled name, a run or a folder of weights; {hint}")


def stage_folders(name: str | Path) -> list[Path]:
    """The folders of weights of the stages that `name` means, the first one's first. Raises MissingFile for an unknown name."""
    folders = [weights_folder(name)]
    while (folders[0] / STAGE_BEFORE / CONFIG).is_file():
        folders.insert(0, folders[0] / STAGE_BEFORE)
    return folders


def describe_checkpoint(name: str | Path) -> ModelSpec:
    """Sizes and settings of a checkpoint, of a cascade's last stage, without its weights."""
    folder = weights_folder(name)
    values = read_config(folder)
    try:
        return from_json(ModelSpec, upgraded_spec(values))
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
