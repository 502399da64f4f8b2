"""`nano`: grids of 4 views x 4 times at 64 x 64 pixels, both streams and their soft sync trained together on CPU."""

from fourreal.config import TrainConfig
from fourreal.data.pipeline import PipelineConfig
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="nano",
    model=VideoDiTConfig(width=256, depth=4, heads=4, mlp_width=1024, patch=(1, 8, 8), hints=True),
    grid=GridDiTConfig(fusion="soft"),
    data=PipelineConfig(views=4, times=4, batch_size=4),
    sigma=SigmaConfig(std=1.0),
    optim=OptimConfig(lr=1e-3, warmup=50),
    steps=1600,
    eval_every=150,
    eval_grids=8,
    save_every=150,
)
