"""The settings of a training run, composed of the dataclasses that each module owns, and the config files that hold them.

A config file is a Python file that sets `CONFIG = TrainConfig(...)`. Only a config that the user names is ever executed; what
a run or a checkpoint stores is JSON.
"""

import dataclasses
import difflib
import runpy
from pathlib import Path
from typing import Literal

from fourreal.data.pipeline import PipelineConfig
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.training.optimizer import OptimConfig


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
    """training steps, one batch each; the learning rate decays over all of them"""
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
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: give 0 to 2^32 - 1")
        if self.trains != "all" and self.data.kind == "clip":
            raise ValueError(f"trains is '{self.trains}' with data.kind 'clip': the base on clips trains 'all'")


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
