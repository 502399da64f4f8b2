"""The ways in which the view axis and the time axis of a grid meet, one file each."""

from fourreal.models.fusions.base import Base
from fourreal.models.fusions.fused import Fused
from fourreal.models.fusions.fusion import Fusion, Probe, Run
from fourreal.models.fusions.hard import Hard
from fourreal.models.fusions.none import NoSync
from fourreal.models.fusions.sequential import Sequential
from fourreal.models.fusions.soft import Soft

__all__ = ["Base", "Fused", "Fusion", "Hard", "NoSync", "Probe", "Run", "Sequential", "Soft"]
