"""`tiny`: grids of 8 views x 8 times at 64 x 64 pixels; samples in about a minute on two cores, trains on an accelerator."""

from fourreal.conditions import Hints
from fourreal.data.batches import PipelineConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="tiny",
    model=VideoDiTConfig(
        width=256,
        depth=8,
        heads=4,
        mlp_width=1024,
        patch=(1, 8, 8),
        conditions=(Hints(drop=0.3),),
        remat="attention_out",
    ),
    grid=GridDiTConfig(fusion="soft"),
    data=PipelineConfig(views=8, times=8, batch_size=16),
    optim=OptimConfig(lr=6e-4, warmup=500),
    steps=20_000,
    eval_every=1000,
    save_every=1000,
)
