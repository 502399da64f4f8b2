"""The arms of an ablation and their settings.

An arm is named by what it differs in:

    REGIME-FUSION[-linear][:SETTING=VALUE,...]            sync-soft    all-fused-linear    sync-soft:loss.heads=1,optim.lr=3e-3

The regime says what trains, `-linear` is the control of the one-stream fusions with soft's parameters, settings are those of a
`TrainConfig`. All arms start from a base on clips; one whose settings change the model starts from a base with that change.
"""

import dataclasses
import difflib
import json
from typing import Any

from fourreal.data.masks import CLIPS, CutMix
from fourreal.errors import UserError
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.serialize import flat_settings, from_json, named_values, to_json
from fourreal.training.config import TrainConfig

BASE = "base"
ONE_STREAM = ("sequential", "fused")
TWO_STREAMS = ("none", "hard", "soft")
REGIMES = ("sync", "sync_and_conditions", "attention", "all")

# name -> (what trains, the fusion)
ARMS: dict[str, tuple[str, GridDiTConfig]] = {
    f"{regime}-{fusion}{'-linear' * linear}": (regime, GridDiTConfig(fusion, matched=linear))
    for regime in REGIMES
    for fusion in TWO_STREAMS + ONE_STREAM
    for linear in (False, True)
    if fusion in ONE_STREAM or not linear
}


def parse_arm(name: str) -> tuple[str, dict[str, Any]]:
    """(the arm without its settings, the settings by dotted name). Raises UserError for a name of none."""
    arm, settings = named_values(name)
    if arm != BASE and arm not in ARMS:
        near = difflib.get_close_matches(arm, ARMS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"there is no arm '{arm}': the arms are {', '.join((BASE, *ARMS))}{hint}")
    return arm, settings


def changed(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """A config with some settings changed by their dotted names. Raises UserError for a name or value that is none."""
    values = to_json(config)
    for name, value in settings.items():
        *path, last = name.split(".")
        place = values
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            near = difflib.get_close_matches(name, flat_settings(values), n=1)
            raise UserError(f"there is no setting '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        place[last] = value
    return from_json(TrainConfig, values)


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What is compared: `train` is what all runs share, the rest what they differ in."""

    train: TrainConfig
    """one run; an arm sets `trains` and `grid`, a run its seeds, `optim.lr` and `data.unit_share`"""
    arms: tuple[str, ...] = tuple(ARMS)
    """REGIME-FUSION, -linear for the control with soft's parameters, :SETTING=VALUE,... for what else an arm changes; base
    trains the base alone"""
    seeds: tuple[int, ...] = (0,)
    """of the data, the masks, the noise, the choice of units and the parameters that the base lacks"""
    learning_rates: tuple[float, ...] = (1e-3,)
    """the report takes each arm at the one that validates best"""
    unit_shares: tuple[float, ...] = (1.0,)
    """shares of the training units whose grids a run sees"""
    base_steps: int = 2000
    """steps of the base, on clips of all units"""
    base_batch: int = 64
    """scenes a step of the base, of which clips are cut"""
    base_cuts: CutMix = CLIPS
    """weights of the clips that the base is trained on"""
    test_grids: int = 128
    """grids of the test split"""
    probe_grids: int = 32
    """of these, for the probe of a finished run; 0: no probe"""
    sampling: tuple[int, ...] = (1, 8)
    """steps in which test grids are sampled; all of a curve's points are scored with the first"""

    def __post_init__(self):
        for name in ("seeds", "learning_rates", "unit_shares", "sampling"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: give at least one")
        for arm in self.arms:
            name, settings = parse_arm(arm)
            if name != BASE or settings:
                changed(self.train, settings)
        if self.train.optim.final_lr != 1:
            raise UserError(
                f"train.optim.final_lr is {self.train.optim.final_lr}: give 1, a constant learning rate, or else no point of a "
                "curve but the last is a run of its length"
            )
        if self.test_grids < 1 or self.probe_grids < 0 or min(self.sampling) < 1:
            raise UserError(
                f"test_grids {self.test_grids}, probe_grids {self.probe_grids}, sampling {self.sampling}: "
                "give at least 1, 0 and 1"
            )
        if self.probe_grids == 1 or self.probe_grids > self.test_grids:
            raise UserError(f"probe_grids is {self.probe_grids}: give 0, or 2 to {self.test_grids}, the test_grids")

    def base_of(self, arm: str) -> str:
        """The name of the base that an arm starts from."""
        said = {name: value for name, value in parse_arm(arm)[1].items() if name.startswith("model.")}
        return BASE + (":" + ",".join(f"{name}={json.dumps(value)}" for name, value in said.items()) if said else "")

    def base_config(self, name: str = BASE) -> TrainConfig:
        """The run that trains a base."""
        train = changed(self.train, parse_arm(name)[1])
        data = dataclasses.replace(train.data, cuts=self.base_cuts, batch_size=self.base_batch, unit_share=1.0)
        grid = GridDiTConfig("base")
        return dataclasses.replace(train, name=name, grid=grid, data=data, steps=self.base_steps, trains="all")

    def runs(self, arm: str) -> list[TrainConfig]:
        """The runs of an arm."""
        name, settings = parse_arm(arm)
        trains, grid = ARMS[name]
        return [
            changed(
                dataclasses.replace(
                    self.train,
                    name=f"{arm}, seed {seed}, lr {lr:g}, {share:.0%} of the units".replace("/", "|"),
                    trains=trains,
                    grid=grid,
                    seed=seed,
                    data=dataclasses.replace(self.train.data, seed=seed, unit_share=share),
                    optim=dataclasses.replace(self.train.optim, lr=lr),
                ),
                settings,
            )
            for share in self.unit_shares
            for lr in self.learning_rates
            for seed in self.seeds
        ]
