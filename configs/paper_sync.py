"""The sync layers of 4Real-Video on the frozen base of `paper_base.py`: they and their projection of sigma train, nothing else.

python train.py configs/paper_sync.py --init-from runs/paper_base
"""

import dataclasses
from pathlib import Path

from fourreal.data.masks import CutMix
from fourreal.models import GridDiTConfig
from fourreal.training.config import load_config

BASE = load_config(Path(__file__).with_name("paper_base.py"))

CONFIG = dataclasses.replace(
    BASE,
    name="paper_sync",
    grid=GridDiTConfig("soft"),
    data=dataclasses.replace(BASE.data, batch_size=8, cuts=CutMix()),
    optim=dataclasses.replace(BASE.optim, sync_lr=3e-3),
    trains="sync",
    steps=1500,
    eval_every=250,
)
