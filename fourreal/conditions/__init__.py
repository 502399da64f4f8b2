"""What a model is told, one file each: given cells, context, hints, low resolution, cameras in two ways, text."""

from fourreal.conditions.cameras import Cameras
from fourreal.conditions.condition import Condition, Conditions, Embedded
from fourreal.conditions.hints import Hints
from fourreal.conditions.low_res import LowRes
from fourreal.conditions.prope import Prope
from fourreal.conditions.text import Prompt, Text

__all__ = ["Cameras", "Condition", "Conditions", "Embedded", "Hints", "LowRes", "Prompt", "Prope", "Text"]
