"""A grid model of Wan 2.1's 1.3B base, frozen, on latents of 8 views x 8 times, for a TPU or GPU cluster.

576 tokens a cell are latents of 36 x 64 (frames of 288 x 512 pixels). There is no data pipeline for latents and embedded
texts yet, so this config is for `fourreal plan`, which takes a text of 512 tokens an example:

fourreal plan configs/wan_1b.py --topology v5e:4x4 --size 36 64
"""

from fourreal.conditions import Text
from fourreal.data.batches import PipelineConfig
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.parallel.mesh import MeshConfig
from fourreal.training.config import TrainConfig

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
    mesh=MeshConfig(fsdp=8, grid=2),
    trains="sync_and_conditions",
)
