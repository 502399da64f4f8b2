"""4D video diffusion in JAX: grids of frames over view and time from a two-stream diffusion transformer.

Importing `fourreal` touches no device and no file.
"""

__version__ = "0.1.0"
__all__ = ["Denoiser", "load_pipeline"]


def __getattr__(name: str):
    if name == "load_pipeline":
        from fourreal.sampling.load import load_pipeline

        return load_pipeline
    if name == "Denoiser":
        from fourreal.diffusion.denoiser import Denoiser

        return Denoiser
    raise AttributeError(f"module 'fourreal' has no attribute {name!r}")
