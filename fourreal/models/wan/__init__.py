"""Pretrained Wan 2.1 and 2.2 transformers as `VideoDiT`."""

from fourreal.models.wan.weights import from_diffusers

__all__ = ["from_diffusers"]
