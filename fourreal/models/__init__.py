"""The base video transformer on clips and the two-stream transformer on grids."""

from fourreal.models.cameras import Cameras
from fourreal.models.grid_dit import GridDiT, GridDiTConfig
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig

__all__ = ["Cameras", "GridDiT", "GridDiTConfig", "VideoDiT", "VideoDiTConfig"]
