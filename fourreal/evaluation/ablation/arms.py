"""The arms of an ablation and their settings.

An arm is a regime (what trains), a fusion and, for the one-stream fusions, `linear`: the control with soft's parameters.
"""

import dataclasses
import difflib

from fourreal.data.masks import CLIPS
from fourreal.errors import UserError
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.training.config import TrainConfig

BASE = "base"
ONE_STREAM = ("sequential", "fused")
TWO_STREAMS = ("soft", "hard", "none")

# name -> (what trains, the fusion)
ARMS: dict[str, tuple[str, GridDiTConfig]] = {
    f"{regime}-{fusion}": (trains, GridDiTConfig(fusion))
    for regime, trains, fusions in (
        ("sync", "sync_and_conditions", ("soft", "hard")),
        ("attention", "attention", TWO_STREAMS + ONE_STREAM),
        ("all", "all", TWO_STREAMS + ONE_STREAM),
    )
    for fusion in fusions
} | {
    f"{trains}-{fusion}-linear": (trains, GridDiTConfig(fusion, matched=True))
    for trains in ("attention", "all")
    for fusion in ONE_STREAM
}


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What is compared: `train` is what all runs share, the rest what they differ in."""

    train: TrainConfig
    """one run; an arm sets `trains` and `grid`, a run its seeds, `optim.lr` and `data.unit_share`"""
    arms: tuple[str, ...] = tuple(ARMS)
    """REGIME-FUSION, -linear for the control with soft's parameters; base trains the base alone"""
    seeds: tuple[int, ...] = (0,)
    """of the data, the masks, the noise, the choice of units and the parameters that the base lacks"""
    learning_rates: tuple[float, ...] = (1e-3,)
    """the report takes each arm at the one that validates best"""
    unit_shares: tuple[float, ...] = (0.1,)
    """shares of the training units whose grids a run sees"""
    base_steps: int = 2000
    """steps of the base, on clips of all units"""
    base_batch: int = 64
    """clips a step of the base"""
    test_grids: int = 128
    """grids of the test split"""

    def __post_init__(self):
        for name in ("seeds", "learning_rates", "unit_shares"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: give at least one")
        for arm in self.arms:
            if arm != BASE and arm not in ARMS:
                near = difflib.get_close_matches(arm, ARMS, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"there is no arm '{arm}': the arms are {', '.join((BASE, *ARMS))}{hint}")
        if self.train.optim.final_lr != 1:
            raise UserError(
                f"train.optim.final_lr is {self.train.optim.final_lr}: give 1, a constant learning rate, or else no point of a "
                "curve but the last is a run of its length"
            )
        if self.test_grids < 1:
            raise UserError(f"test_grids is {self.test_grids}: give 1 or more")

    def base_config(self) -> TrainConfig:
        """The run that trains the base."""
        data = dataclasses.replace(self.train.data, cuts=CLIPS, batch_size=self.base_batch, unit_share=1.0)
        grid = GridDiTConfig("base")
        return dataclasses.replace(self.train, name=BASE, grid=grid, data=data, steps=self.base_steps, trains="all")

    def runs(self, arm: str) -> list[TrainConfig]:
        """The runs of an arm."""
        trains, grid = ARMS[arm]
        return [
            dataclasses.replace(
                self.train,
                name=f"{arm}, seed {seed}, lr {lr:g}, {share:.0%} of the units",
                trains=trains,
                grid=grid,
                seed=seed,
                data=dataclasses.replace(self.train.data, seed=seed, unit_share=share),
                optim=dataclasses.replace(self.train.optim, lr=lr),
            )
            for share in self.unit_shares
            for lr in self.learning_rates
            for seed in self.seeds
        ]
