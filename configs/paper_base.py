"""The base of 4Real-Video in small and plain: clips of both kinds, random masks, nothing but the given frames.

No hints, no copying: the network returns the velocity, which at 16 x 16 pixels it can. `paper_sync.py` freezes it.

fourreal data render --out data/dense32 --size 32 --views 8 --sweep 15 60 --train 3000
python train.py configs/paper_base.py
python train.py configs/paper_sync.py --init-from runs/paper_base
"""

from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CLIPS
from fourreal.data.sources import Records
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

CONFIG = TrainConfig(
    name="paper_base",
    model=VideoDiTConfig(
        width=192, depth=6, heads=4, mlp_width=768, patch=(1, 4, 4), prediction="u", remat="none", unroll=True
    ),
    grid=GridDiTConfig("base"),
    data=PipelineConfig(Records("data/dense32", reduce=2), views=4, times=4, batch_size=32, cuts=CLIPS),
    sigma=SigmaConfig(mean=0.8, std=1.0, pure=0.1),
    optim=OptimConfig(lr=1e-3, warmup=100, ema=0.995),
    steps=2500,
    eval_every=500,
    save_every=500,
)
