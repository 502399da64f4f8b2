"""A grid model of Wan 2.1's 1.3B base, frozen, on latents of 8 views x 8 times, for a TPU or GPU cluster.

576 tokens a cell are latents of 36 x 64 (frames of 288 x 512 pixels). There is no data pipeline for latents and embedded
texts yet, so this config is for `fourreal plan`, which takes a text of 512 tokens an example:

fourreal plan configs/wan_1b.py --topology v5e:4x4 --size 36 64
"""

from fourreal.conditions import Text
from fourreal.data.batches import PipelineConfig
from fourreal.diffusion.flow import SigmaConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.parallel.mesh import MeshConfig
from fourreal.training.config import TrainConfig

# The base's own shift of the noise levels: Wan 2.1 takes 5 at 720p (720 x 1280) and 3 at 480p (480 x 832); a frame of 288 x 512
# has fewer pixels than either, so 3. With this mean, logit(sigma) in training is N(0.8, 0.8) after the shift, too.
SIGMA = SigmaConfig(mean=-0.3, shift=3.0)

CONFIG = TrainConfig(
    name="wan_1b",
    model=VideoDiTConfig(
        width=1536,
        depth=30,
        heads=12,
        mlp_width=8960,
        patch=(1, 2, 2),
        channels=16,
        conditions=(Text(width=4096),),
        prediction="u",
        dtype="bfloat16",
        remat="full",
    ),
    grid=GridDiTConfig(fusion="soft"),
    data=PipelineConfig(views=8, times=8, batch_size=8),
    sigma=SIGMA,
    mesh=MeshConfig(fsdp=8, grid=2),
    trains="sync_and_conditions",
)
