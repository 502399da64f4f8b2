"""Something to look at in ten minutes of two CPU cores: 4 views x 4 times at 64 x 64 pixels, from given frames that are moved.

fourreal data render --out data/quick --train 600 --validation 16 --test 16 --sweep 15 60
python train.py configs/quick.py
python sample.py --checkpoint runs/quick
"""

import dataclasses
from pathlib import Path

from fourreal.conditions import Hints
from fourreal.data.sources import Records
from fourreal.diffusion.flow import LossConfig
from fourreal.training.config import load_config

NANO = load_config(Path(__file__).with_name("nano.py"))

CONFIG = dataclasses.replace(
    NANO,
    name="quick",
    # a mix of what is given and moved is the first answer, before any training; the rest of the time goes into mending it
    model=dataclasses.replace(NANO.model, copies="mix", conditions=(Hints(moved=True, drop=0.15),)),
    data=dataclasses.replace(NANO.data, source=Records("data/quick")),
    loss=LossConfig(most=5.0, huber=0.05),
    steps=240,
    eval_every=80,
    save_every=80,
)
