"""Samplers: from noise to frames along the flow; one file each, another package may add its own."""

from fourreal.diffusion.samplers.base import Sampler, integrate, noise_levels
from fourreal.diffusion.samplers.euler import Euler
from fourreal.diffusion.samplers.heun import Heun
from fourreal.diffusion.samplers.unipc import UniPC

__all__ = ["Euler", "Heun", "Sampler", "UniPC", "integrate", "noise_levels"]
