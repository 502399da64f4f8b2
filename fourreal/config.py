"""The settings of a training run, composed of the dataclasses that each module owns; config files and the JSON round trip.

A config file is a Python file that sets `CONFIG = TrainConfig(...)`. Only a config that the user names is ever executed; what
a run or a checkpoint stores is JSON.
"""

import dataclasses
import difflib
import runpy
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from fourreal.data.pipeline import PipelineConfig
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.training.optimizer import OptimConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. `data.kind` decides what is trained: the base on clips, or the grid model on grids."""

    name: str
    """name of the run; its folder is `runs/NAME` unless `out` says otherwise"""
    model: VideoDiTConfig
    """the base"""
    grid: GridDiTConfig = GridDiTConfig()
    """the fusion of the two axes; not used when `data.kind` is clip"""
    data: PipelineConfig = PipelineConfig()
    """examples, masks and batches"""
    sigma: SigmaConfig = SigmaConfig()
    """noise levels"""
    optim: OptimConfig = OptimConfig()
    """optimizer and schedule"""
    trains: Literal["all", "attention", "sync"] = "all"
    """which parameters train: all, the self-attention and sync, or only the sync layers with what conditions the base"""
    steps: int = 1000
    """training steps; one reads one batch"""
    seed: int = 0
    """of the parameters and of the noise"""
    eval_every: int = 200
    """steps between validations; 0: only at the end"""
    eval_grids: int = 16
    """validation grids"""
    save_every: int = 500
    """steps between checkpoints; one is always saved at the end"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""

    def __post_init__(self):
        for field, least in (("steps", 1), ("eval_grids", 1), ("save_every", 1), ("log_every", 1), ("eval_every", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}: give {least} or more")
        if self.trains != "all" and self.data.kind == "clip":
            raise ValueError(f"trains is '{self.trains}' with data.kind 'clip': the base on clips trains 'all'")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a folder of weights says about its model: all that sampling needs."""

    model: VideoDiTConfig
    """the base"""
    grid: GridDiTConfig | None
    """the fusion; none for a base alone"""
    sigma: SigmaConfig
    """noise levels of training; sampling takes the shift"""
    views: int
    """views of a grid as trained"""
    times: int
    """times of a grid as trained"""
    size: int
    """height and width of a frame as trained, in pixels"""


def load_config(path: str | Path) -> TrainConfig:
    """Runs a config file and returns its CONFIG; raises FileNotFoundError or ValueError."""
    path = Path(path)
    if not path.is_file():
        known = sorted(str(file) for file in Path("configs").glob("*.py"))
        near = difflib.get_close_matches(str(path), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
        raise FileNotFoundError(f"there is no config file {path}; {hint}")
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (SyntaxError, TypeError, NameError, ImportError) as error:
        raise ValueError(f"{path} does not run: {error}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path} sets no CONFIG = TrainConfig(...)")
    return config


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and numbers."""
    return dataclasses.asdict(config)


def from_json(kind: type[T], values: Any, where: str = "") -> T:
    """A config of dataclass `kind` from `to_json`'s form; an unknown or missing key raises ValueError naming it."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or kind.__name__}: expected an object of {kind.__name__}, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ValueError(f"unknown key '{where}{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{kind.__name__} lacks the key '{where}{missing[0]}'")
    return kind(**{key: _value(hints[key], value, f"{where}{key}.") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as its type hint has it: nested dataclasses, optional ones, and lists as tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option):
            return from_json(option, value, where)
    if isinstance(value, list):
        return tuple(value)
    return value
