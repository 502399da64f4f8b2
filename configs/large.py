"""`large`: the size of the paper's model, a base of 600 M parameters in pixel space, on 8 views x 8 times of 384 x 384 pixels.

576 tokens a cell, as the paper's 288 x 512 with patches of 16. For accelerators with much memory:

fourreal plan configs/large.py --topology v5e:4x4 --size 384 384 --mesh.fsdp 8 --mesh.grid 2
"""

from fourreal.conditions import Hints
from fourreal.data.batches import PipelineConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="large",
    model=VideoDiTConfig(
        width=1536,
        depth=20,
        heads=12,
        mlp_width=6144,
        patch=(1, 16, 16),
        conditions=(Hints(drop=0.3),),
        dtype="bfloat16",
        remat="full",
    ),
    grid=GridDiTConfig(fusion="soft"),
    data=PipelineConfig(source="data/render384", views=8, times=8, batch_size=8),
    optim=OptimConfig(lr=2e-4, warmup=1000),
    steps=50_000,
    eval_every=1000,
    save_every=1000,
)
