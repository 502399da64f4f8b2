"""Wan 2.1's 1.3B on grids of 8 views x 8 times: sync layers join the streams of the adapted base, which stays frozen. Phase 2.

python train.py configs/wan_1b_sync.py --init-from runs/wan_1b_adapt
fourreal plan configs/wan_1b_sync.py --topology v5e:4x4 --size 36 64
"""

import dataclasses
from pathlib import Path

from fourreal.data.masks import CutMix
from fourreal.models import GridDiTConfig
from fourreal.parallel.mesh import MeshConfig
from fourreal.training.config import load_config

ADAPT = load_config(Path(__file__).with_name("wan_1b_adapt.py"))

CONFIG = dataclasses.replace(
    ADAPT,
    name="wan_1b_sync",
    grid=GridDiTConfig("soft"),
    data=dataclasses.replace(ADAPT.data, cuts=CutMix(), batch_size=8),
    mesh=MeshConfig(fsdp=8, grid=2),
    trains="sync",
    steps=10_000,
)
