"""Wan 2.1's 1.3B on grids: low-rank additions, conditions and sync layers train together, at a small rate. Phase 3.

python train.py configs/wan_1b_tune.py --init-from runs/wan_1b_sync
python train.py configs/wan_1b_tune.py --init-from runs/wan_1b_adapt --grid.fusion fused      # as V2, without sync layers
fourreal plan configs/wan_1b_tune.py --topology v5e:4x4 --size 36 64
"""

import dataclasses
from pathlib import Path

from fourreal.training.config import load_config

SYNC = load_config(Path(__file__).with_name("wan_1b_sync.py"))

CONFIG = dataclasses.replace(
    SYNC,
    name="wan_1b_tune",
    trains="lora",
    optim=dataclasses.replace(SYNC.optim, lr=3e-5),
    steps=5000,
)
