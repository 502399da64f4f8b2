"""Which fusion, trained how? Grids of 4 views x 4 times at 32 x 32 pixels, small enough for two CPU cores.

fourreal data render --out data/render32 --size 32 --train 3000 --test 128
fourreal ablate configs/ablation.py
"""

from fourreal.conditions import Hints
from fourreal.data.batches import PipelineConfig
from fourreal.diffusion.flow import SigmaConfig
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.models import VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = AblationConfig(
    train=TrainConfig(
        name="ablation",
        model=VideoDiTConfig(width=96, depth=3, heads=1, mlp_width=384, patch=(1, 8, 8), conditions=(Hints(),)),
        data=PipelineConfig(source="data/render32", views=4, times=4, batch_size=16),
        sigma=SigmaConfig(mean=-0.3, std=1.0, shift=3.0),
        # constant, and a short average: every point of a curve is what a run of that length would leave
        optim=OptimConfig(lr=1e-3, warmup=50, final_lr=1.0, ema=0.995),
        steps=2000,
        eval_every=250,
        eval_grids=16,
        save_every=500,
    ),
    arms=("all-soft", "all-hard", "all-sequential", "all-fused", "all-none", "sync-soft", "sync-hard"),
)
