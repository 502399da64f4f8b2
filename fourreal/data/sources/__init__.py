"""Where scenes come from, one file a format."""

from fourreal.data.sources.records import Records
from fourreal.data.sources.shift_and_roll import ShiftAndRoll

__all__ = ["Records", "ShiftAndRoll"]
