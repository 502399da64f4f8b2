"""Wan 2.2's TI2V-5B on grids of 8 views x 8 times, its base frozen; its autoencoder takes 16 x 16 pixels to a latent.

python train.py configs/wan_5b_sync.py --name wan_5b_adapt --trains lora --init-from bases/wan-5b --grid.fusion base \\
    --data.cuts.grid 0 --data.cuts.fixed-view 1 --data.cuts.freeze-time 1
python train.py configs/wan_5b_sync.py --init-from runs/wan_5b_adapt
fourreal plan configs/wan_5b_sync.py --topology v5e:4x4 --size 18 32
"""

import dataclasses
from pathlib import Path

from fourreal.codecs.wan import Wan22Codec
from fourreal.data.sources import Records
from fourreal.parallel.mesh import MeshConfig
from fourreal.training.config import load_config

WAN_1B = load_config(Path(__file__).with_name("wan_1b_sync.py"))

CONFIG = dataclasses.replace(
    WAN_1B,
    name="wan_5b_sync",
    model=dataclasses.replace(WAN_1B.model, width=3072, depth=30, heads=24, mlp_width=14336, channels=48),
    data=dataclasses.replace(WAN_1B.data, source=Records("data/latents_5b"), batch_size=16),
    codec=Wan22Codec(),
    sigma=dataclasses.replace(WAN_1B.sigma, shift=5.0),
    mesh=MeshConfig(fsdp=8, grid=2),
)
