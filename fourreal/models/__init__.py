"""The base video transformer on clips and the two-stream transformer on grids."""

from fourreal.conditions import Hints, Text
from fourreal.models.fusions import Fusion, Probe
from fourreal.models.grid_dit import GridDiT, GridDiTConfig
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig
from fourreal.scene import Cameras

__all__ = ["Cameras", "Fusion", "GridDiT", "GridDiTConfig", "Hints", "Probe", "Text", "VideoDiT", "VideoDiTConfig"]
