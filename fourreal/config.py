"""The settings of a training run, composed of the dataclasses that each module owns, and the config files that hold them.

A config file is a Python file that sets `CONFIG = TrainConfig(...)`. Only a config that the user names is ever executed; what
a run or a checkpoint stores is JSON.
"""

import dataclasses
import difflib
import math
import runpy
from pathlib import Path
from typing import Literal, TypeVar

from fourreal.data.pipeline import PipelineConfig
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.kernels import AttentionConfig
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.parallel.mesh import MeshConfig
from fourreal.serialize import flat_settings, to_json
from fourreal.training.optimizer import OptimConfig

Config = TypeVar("Config")


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
    mesh: MeshConfig = MeshConfig()
    """devices along each axis"""
    attention: AttentionConfig = AttentionConfig()
    """kernel of the attention"""
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
    profile_steps: int = 0
    """steps to trace with JAX's profiler, from the tenth on, into the run's folder `profile`; 0: none"""
    watchdog_minutes: float = 10.0
    """minutes without progress after which every process says where it stands; 0: never"""

    def __post_init__(self):
        if Path(self.name).name != self.name or not self.name:
            raise ValueError(
                f"name is '{self.name}': give a plain name, without slashes; the run's folder is runs/NAME"
            )
        for setting, value in flat_settings(to_json(self)).items():
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{setting} is nan: give a number")
        for field, least in (
            ("steps", 1),
            ("eval_grids", 1),
            ("save_every", 1),
            ("log_every", 1),
            ("eval_every", 0),
            ("profile_steps", 0),
        ):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}: give {least} or more")
        if not 0 <= self.watchdog_minutes < math.inf:
            raise ValueError(f"watchdog_minutes is {self.watchdog_minutes}: give 0 or more")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: give 0 to 2^32 - 1")
        if self.trains != "all" and self.data.kind == "clip":
            raise ValueError(f"trains is '{self.trains}' with data.kind 'clip': the base on clips trains 'all'")


def load_config(path: str | Path, kind: type[Config] = TrainConfig) -> Config:
    """Runs a config file and returns its CONFIG of a kind; raises FileNotFoundError or ValueError."""
    path = Path(path)
    if not path.is_file():
        known = sorted(str(file) for file in Path("configs").glob("*.py"))
        near = difflib.get_close_matches(str(path), [*known, *map(str, path.parent.glob("*.py"))], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
        raise FileNotFoundError(f"there is no config file {path}; {hint}")
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:  # whatever the user's own code does
        raise ValueError(f"{path} does not run ({type(error).__name__}: {error}): mend the file") from error
    if not isinstance(config, kind):
        raise ValueError(f"{path} sets no CONFIG = {kind.__name__}(...): see configs/ for files that do")
    return config
