"""`nano` goes on with cameras: it learns where its views stand, so that one video or one picture says enough.

python train.py configs/nano_cameras.py --init-from runs/nano
"""

import dataclasses
from pathlib import Path

from fourreal.conditions import Cameras
from fourreal.data.masks import MaskMix
from fourreal.training.config import load_config

NANO = load_config(Path(__file__).with_name("nano.py"))

CONFIG = dataclasses.replace(
    NANO,
    name="nano_cameras",
    model=dataclasses.replace(NANO.model, conditions=(*NANO.model.conditions, Cameras())),
    # a third of the examples as in nano; more of those in which only cameras tell what the other views see
    data=dataclasses.replace(NANO.data, masks=MaskMix(view_and_time=0.5, fixed_view=0.3, one_cell=0.15)),
    steps=600,
)
