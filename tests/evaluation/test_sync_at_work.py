"""Sync at work: trainings on shift and roll that are over in two minutes, with the base frozen and with everything trained.

Grids of 8 x 8 pixels have two shifts and two rolls, so the floors are higher than those in docs/ablation.md: of a texture with
variance 1, one given frame leaves 1/2, the average of both 3/8, their best sum 1/4.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fourreal.data.sources import ShiftAndRoll
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.evaluation.ablation.command import ablate
from fourreal.evaluation.ablation.files import file_stem, read_arm
from fourreal.evaluation.ablation.report import Arm
from fourreal.host.signals import StopSignal
from fourreal.metrics.statistics import mean_difference
from fourreal.training.config import load_config

pytestmark = pytest.mark.slow

PLAIN = load_config(Path(__file__).parents[2] / "configs" / "shift_and_roll_plain.py", AblationConfig)
TRAIN = PLAIN.train
CONFIG = dataclasses.replace(
    PLAIN,
    train=dataclasses.replace(
        TRAIN,
        model=dataclasses.replace(TRAIN.model, width=64, depth=3, mlp_width=256),
        data=dataclasses.replace(TRAIN.data, source=ShiftAndRoll(size=8), batch_size=32),
        optim=dataclasses.replace(TRAIN.optim, lr=2e-3, warmup=50),
        steps=400,
        eval_every=400,
        eval_grids=4,
        save_every=400,
    ),
    arms=("sync-none", "sync-soft", "all-none", "all-soft"),
    learning_rates=(2e-3,),
    seeds=(0,),
    base_steps=500,
    base_batch=32,
    test_grids=64,
    probe_grids=16,
    sampling=(1,),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict[str, Arm], dict[str, np.ndarray]]:
    """The arms, and the PSNR of every test grid that each reference has."""
    folder = tmp_path_factory.mktemp("shift_and_roll")
    with StopSignal() as stop:
        ablate(CONFIG, folder / "runs", folder / "files", stop)
    arms = {arm: Arm(*read_arm(folder / "files" / f"{file_stem(arm)}.json")) for arm in CONFIG.arms}
    references = read_arm(folder / "files" / "base.json")[1][0]["references"]
    return arms, {name: np.array(scores["all"], float) for name, scores in references.items()}


@pytest.mark.parametrize("regime", ["sync", "all"])
def test_soft_sync_tells_what_neither_axis_knows(found, regime):
    arms, references = found
    soft, none = arms[f"{regime}-soft"], arms[f"{regime}-none"].final("all")
    for other in (none, *references.values()):
        mean, low, _ = mean_difference(soft.final("all"), other)
        assert mean > 2 and low > 0
    mean, low, _ = mean_difference(worth := soft.worth("foreign"), np.zeros_like(worth))
    assert mean > 1 and low > 0  # another scene's messages do not do


def test_streams_that_never_meet_stay_at_their_floor(found):
    """A frozen base at the average of its floors; two heads that are trained together at their best sum."""
    arms, references = found
    for arm, floor in (("sync-none", "average of both"), ("all-none", "best sum of both")):
        above, _, _ = mean_difference(arms[arm].final("all"), references[floor])
        assert above < 0.2
    assert arms["sync-none"].worth("foreign") is None


def test_the_base_knows_what_one_frame_tells_of_a_clip(found):
    """Each stream of `none` with the frozen base is the base on clips; no more can be known, and no more than 0.5 dB lack."""
    arms, references = found
    for readout, floor in (("view", "x[0,t] alone"), ("time", "x[v,0] alone")):
        below, _, _ = mean_difference(references[floor], arms["sync-none"].final("all", readout))
        assert -0.2 < below < 0.5
