"""The control of the ablation: with hints every cell sees both of its given frames.

fourreal ablate configs/shift_and_roll_hints.py
"""

import dataclasses
from pathlib import Path

from fourreal.conditions import Hints
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.training.config import load_config

PLAIN = load_config(Path(__file__).with_name("shift_and_roll_plain.py"), AblationConfig)

CONFIG = dataclasses.replace(
    PLAIN,
    train=dataclasses.replace(
        PLAIN.train, name="shift_and_roll_hints", model=dataclasses.replace(PLAIN.train.model, conditions=(Hints(),))
    ),
    arms=("sync-none", "sync-soft", "all-none", "all-soft"),
    seeds=(0,),
)
