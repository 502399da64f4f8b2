"""What 4Real-Video leaves open about soft sync, tried on shift and roll with a frozen base, see docs/ablation.md.

fourreal ablate configs/shift_and_roll_variants.py
"""

import dataclasses
from pathlib import Path

from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.training.config import load_config

PLAIN = load_config(Path(__file__).with_name("shift_and_roll_plain.py"), AblationConfig)

CONFIG = dataclasses.replace(
    PLAIN,
    train=dataclasses.replace(PLAIN.train, name="shift_and_roll_variants"),
    arms=(
        "sync-none",
        "sync-soft",
        "sync-soft:loss.heads=1",  # a loss on each head beside that of their mean
        "sync-soft:loss.gap=0.1,loss.gap_weight=depth",  # the streams have to agree, more with depth
        "sync-soft:loss.gap=0.1,loss.gap_weight=clean",  # the same, more as the noise goes
        "sync-soft:grid.sync_init=consensus",
        "sync-soft:grid.fusion=soft:every=2",
        "sync-soft:optim.sync_lr=0.003",
    ),
    seeds=(0,),
)
