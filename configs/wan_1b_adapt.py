"""Wan 2.1's 1.3B learns what a grid asks of it, on clips of latents: phase 1 of 3, then `wan_1b_sync.py`, `wan_1b_tune.py`.

The released model makes videos from text alone. Low-rank additions to its attention teach it given frames at noise level 0
beside noised ones, and freeze-time videos; the rest stays frozen. docs/wan.md has every command from the download on.

fourreal encode data/render --codec wan:weights=wan-1b/vae --text text.safetensors --captions captions.txt --out data/latents
python train.py configs/wan_1b_adapt.py --init-from bases/wan-1b
fourreal plan configs/wan_1b_adapt.py --topology v5e:4x4 --size 36 64
"""

from fourreal.codecs.wan import WanCodec
from fourreal.conditions import Text
from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CLIPS
from fourreal.data.sources import Records
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.parallel.mesh import MeshConfig
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig

# The base's own shift of the noise levels: Wan 2.1 takes 5 at 720p (720 x 1280) and 3 at 480p (480 x 832); a frame of 288 x 512
# has fewer pixels than either, so 3. With this mean, logit(sigma) in training is N(0.8, 0.8) after the shift, too.
SIGMA = SigmaConfig(mean=-0.3, shift=3.0)

CONFIG = TrainConfig(
    name="wan_1b_adapt",
    model=VideoDiTConfig(
        width=1536,
        depth=30,
        heads=12,
        mlp_width=8960,
        patch=(1, 2, 2),
        channels=16,
        conditions=(Text(width=4096, drop=0.1),),
        prediction="u",
        dtype="bfloat16",
        remat="full",
        lora_rank=32,
    ),
    grid=GridDiTConfig(fusion="base"),
    # frames of 288 x 512 are latents of 36 x 64, 576 tokens a cell
    data=PipelineConfig(Records("data/latents"), views=8, times=8, batch_size=16, cuts=CLIPS),
    codec=WanCodec(),
    sigma=SIGMA,
    optim=OptimConfig(lr=1e-4, warmup=200),
    mesh=MeshConfig(data=1, fsdp=-1),
    trains="lora",
    sampling_steps=30,
    steps=5000,
    eval_every=1000,
    eval_grids=8,
    save_every=500,
)
