"""Shift and roll with sprites: do the streams tell each other what neither axis knows? The main ablation, see docs/ablation.md.

fourreal ablate configs/shift_and_roll.py
"""

import dataclasses
from pathlib import Path

from fourreal.data.sources import ShiftAndRoll
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.training.config import load_config

PLAIN = load_config(Path(__file__).with_name("shift_and_roll_plain.py"), AblationConfig)

CONFIG = dataclasses.replace(
    PLAIN,
    train=dataclasses.replace(
        PLAIN.train,
        name="shift_and_roll",
        data=dataclasses.replace(PLAIN.train.data, source=ShiftAndRoll("sprites")),
    ),
    base_steps=2000,
)
