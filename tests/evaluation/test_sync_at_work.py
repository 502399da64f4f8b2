"""Sync at work: short trainings on shift and roll, with the base frozen and with everything trained.

Grids of 8 x 8 pixels have two shifts and two rolls, so the floors are higher than those in docs/ablation.md: of a texture with
variance 1, one given frame leaves 1/2, the average of both 3/8, their best sum 1/4.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fourreal.evaluation.ablation.files import read_arm
from fourreal.evaluation.ablation.report import Arm
from fourreal.metrics.statistics import mean_difference

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = """
import dataclasses

from fourreal.data.sources import ShiftAndRoll
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.training.config import load_config

PLAIN = load_config("FILE", AblationConfig)
TRAIN = PLAIN.train
CONFIG = dataclasses.replace(
    PLAIN,
    train=dataclasses.replace(
        TRAIN,
        name="small",
        model=dataclasses.replace(TRAIN.model, width=64, depth=3, mlp_width=256),
        data=dataclasses.replace(TRAIN.data, source=ShiftAndRoll(size=8), batch_size=32),
        optim=dataclasses.replace(TRAIN.optim, warmup=50),
        steps=300,
        eval_every=0,
        eval_grids=4,
        save_every=1000,
    ),
    arms=("sync-none", "sync-soft", "all-soft:steps=150"),
    learning_rates=(2e-3,),
    seeds=(0,),
    base_steps=500,
    test_grids=64,
    probe_grids=16,
    sampling=(1,),
)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict[str, Arm], dict[str, np.ndarray]]:
    """The arms, and the PSNR of every test grid that each reference has. By the command, without the tests' eight devices."""
    folder = tmp_path_factory.mktemp("shift_and_roll")
    config = CONFIG.replace("FILE", str(ROOT / "configs" / "shift_and_roll_plain.py"))
    (folder / "small.py").write_text(config)
    options = ["--runs", str(folder / "runs"), "--docs", str(folder / "docs")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fourreal", "ablate", str(folder / "small.py"), *options]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    arms = {name: Arm(name, runs) for name, runs in map(read_arm, sorted((folder / "docs" / "small").glob("*.json")))}
    references = arms.pop("base").runs[0]["references"]
    return arms, {name: np.array(scores["all"], float) for name, scores in references.items()}


@pytest.mark.parametrize("arm", ["sync-soft", "all-soft:steps=150"])
def test_soft_sync_tells_what_neither_axis_knows(found, arm):
    """More than any one frame, their average and streams that never meet; with everything trained, than the best sum, too."""
    arms, references = found
    soft = arms[arm]
    floors = [frames for name, frames in references.items() if arm != "sync-soft" or name != "best sum of both"]
    for other in (arms["sync-none"].final("all"), *floors):
        mean, low, _ = mean_difference(soft.final("all"), other)
        assert mean > 2 and low > 0
    mean, low, _ = mean_difference(worth := soft.worth("foreign"), np.zeros_like(worth))
    assert mean > 1 and low > 0  # another scene's messages do not do


def test_streams_that_never_meet_stay_at_the_average_of_their_floors(found):
    arms, references = found
    above, _, _ = mean_difference(arms["sync-none"].final("all"), references["average of both"])
    assert above < 0.2 and arms["sync-none"].worth("foreign") is None
