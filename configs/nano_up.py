"""The second stage of a cascade: from 32 x 32 to 128 x 128 pixels, what the enlarged grid lacks.

fourreal data render --out data/render128 --size 128 --sweep 15 60 --train 3000
python train.py configs/nano_up.py
cp -r runs/nano_low/weights runs/nano_up/weights/low          # then both are one checkpoint
python sample.py --checkpoint runs/nano_up
"""

import dataclasses
from pathlib import Path

from fourreal.conditions import Hints, LowRes
from fourreal.data.sources import Records
from fourreal.training.config import load_config

LOW = load_config(Path(__file__).with_name("nano_low.py"))

CONFIG = dataclasses.replace(
    LOW,
    name="nano_up",
    model=dataclasses.replace(
        LOW.model,
        patch=(1, 8, 8),
        conditions=(Hints(moved=True, drop=0.1), LowRes(factor=4, noise=0.4, soft=1.0)),  # a mix of these, too
    ),
    data=dataclasses.replace(
        LOW.data, source=Records("data/render128"), sizes=((4, 4), (4, 4), (8, 2), (2, 8)), batch_size=2
    ),
    # one step from pure noise is as good as four here, so most draws are of that
    sigma=dataclasses.replace(LOW.sigma, pure=0.7),
    sampling_steps=1,
    loss=dataclasses.replace(LOW.loss, lpips=0.3),  # else a doubtful place is a blur, which is nearest on average
    optim=dataclasses.replace(LOW.optim, ema=0.99),
    steps=450,
    eval_every=350,
    eval_grids=2,
)
