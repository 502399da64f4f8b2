"""The base of `nano` alone, on clips: fixed-view videos, freeze-time videos and single images.

python train.py configs/nano_base.py
python train.py configs/nano_sync.py --init-from runs/nano_base
"""

import dataclasses
from pathlib import Path

from fourreal.data.masks import CLIPS
from fourreal.models import GridDiTConfig
from fourreal.training.config import load_config

NANO = load_config(Path(__file__).with_name("nano.py"))

CONFIG = dataclasses.replace(
    NANO,
    name="nano_base",
    grid=GridDiTConfig("base"),
    data=dataclasses.replace(NANO.data, cuts=CLIPS, batch_size=16),
    optim=dataclasses.replace(NANO.optim, microbatch=None),
)
