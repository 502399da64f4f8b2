"""`nano`: grids of 4 views x 4 times at 64 x 64 pixels, both streams and their soft sync trained together on CPU."""

from fourreal.conditions import Hints
from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import MaskMix
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

# Half the examples are what `make sample` shows, a view and a time given; the default mix has 30 % of them.
MASKS = MaskMix(view_and_time=0.8)

CONFIG = TrainConfig(
    name="nano",
    model=VideoDiTConfig(
        width=256,
        depth=4,
        heads=4,
        mlp_width=1024,
        patch=(1, 8, 8),
        conditions=(Hints(drop=0.3),),
        remat="none",
        unroll=True,
    ),
    grid=GridDiTConfig(fusion="soft"),
    data=PipelineConfig(views=4, times=4, batch_size=4, masks=MASKS),
    sigma=SigmaConfig(mean=-0.3, std=1.0, shift=3.0),  # logit(sigma) ~ N(0.8, 1); sampling takes larger sigmas, too
    optim=OptimConfig(lr=1e-3, warmup=50, microbatch=2),  # faster by a tenth on two cores than all four at once
    steps=800,
    eval_every=150,
    eval_grids=8,
    save_every=150,
)
