"""Shift and roll in its plain form: one texture that views shift and times roll, see docs/ablation.md.

fourreal ablate configs/shift_and_roll_plain.py
"""

from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CutMix, MaskMix
from fourreal.data.sources import ShiftAndRoll
from fourreal.diffusion.flow import LossConfig, SigmaConfig
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.models import VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

# One view and one time are given; on the base's clips that means any frames but all of them.
MASKS = MaskMix(1, *[0] * 7)

CONFIG = AblationConfig(
    train=TrainConfig(
        name="shift_and_roll_plain",
        model=VideoDiTConfig(width=128, depth=4, heads=4, mlp_width=512, patch=(1, 4, 4), remat="none", unroll=True),
        data=PipelineConfig(source=ShiftAndRoll("plain"), views=3, times=3, batch_size=16, masks=MASKS),
        # most draws where only the given frames tell anything; the plain error of x0, so that low noise does not outweigh them
        sigma=SigmaConfig(mean=0.0, std=1.0, pure=0.6),
        loss=LossConfig(most=1.0),
        # constant, and a short average: every point of a curve is what a run of that length would leave
        optim=OptimConfig(lr=1e-3, warmup=100, final_lr=1.0, ema=0.99),
        steps=600,
        eval_every=100,
        eval_grids=16,
        save_every=200,
    ),
    arms=(
        "sync-none",
        "sync-sequential-linear",
        "sync-fused-linear",
        "sync-hard",
        "sync-soft",
        "all-none",
        "all-sequential",
        "all-fused",
        "all-hard",
        "all-soft",
    ),
    seeds=(0, 1),
    base_steps=1000,
    base_batch=48,
    base_cuts=CutMix(grid=0, fixed_view=0.45, freeze_time=0.45, image=0.1),
)
