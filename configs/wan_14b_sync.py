"""Wan 2.1's 14B on grids of 8 views x 8 times, its base frozen; see `wan_1b_sync.py`.

fourreal plan configs/wan_14b_sync.py --topology v5p:8x8x4 --size 36 64
"""

import dataclasses
from pathlib import Path

from fourreal.parallel.mesh import MeshConfig
from fourreal.training.config import load_config

WAN_1B = load_config(Path(__file__).with_name("wan_1b_sync.py"))

CONFIG = dataclasses.replace(
    WAN_1B,
    name="wan_14b_sync",
    model=dataclasses.replace(WAN_1B.model, width=5120, depth=40, heads=40, mlp_width=13824),
    data=dataclasses.replace(WAN_1B.data, batch_size=64),
    mesh=MeshConfig(data=4, fsdp=16, grid=4),
)
