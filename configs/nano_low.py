"""The first stage of a cascade: 8 views x 8 times at 32 x 32 pixels, from hints that move, on two CPU cores.

fourreal data render --out data/render128 --size 128 --sweep 15 60 --train 3000
python train.py configs/nano_low.py
"""

from fourreal.conditions import Cameras, Hints
from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import MaskMix
from fourreal.data.sources import Records
from fourreal.diffusion.flow import LossConfig, SigmaConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="nano_low",
    model=VideoDiTConfig(
        width=192,
        depth=4,
        heads=4,
        mlp_width=768,
        patch=(1, 4, 4),
        copies="mix",
        conditions=(Hints(moved=True, drop=0.15), Cameras()),
        remat="none",
        unroll=True,
    ),
    grid=GridDiTConfig("soft"),
    data=PipelineConfig(
        Records("data/render128", reduce=4),
        views=8,
        times=8,
        # many small grids teach more than few large ones at the same cost; the large ones teach places up to the eighth
        sizes=((4, 4),) * 5 + ((4, 8), (8, 4)) * 2 + ((8, 8),),
        batch_size=4,
        masks=MaskMix(view_and_time=0.8),
    ),
    # logit(sigma) ~ N(0.8, 1), and a tenth of pure noise: there the sample's structure is made
    sigma=SigmaConfig(mean=-0.3, std=1.0, shift=3.0, pure=0.1),
    loss=LossConfig(most=5.0, huber=0.05),  # nearly the plain distance: the middle of what may be, not its mean
    optim=OptimConfig(lr=1e-3, warmup=50, microbatch=2, ema=0.998),
    steps=600,
    eval_every=200,
    eval_grids=16,
    save_every=50,
)
