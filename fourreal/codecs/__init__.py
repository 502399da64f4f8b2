"""Between pixels and the space that a model works in, one file each."""

from fourreal.codecs.codec import Codec, to_latents
from fourreal.codecs.pixels import PixelCodec

__all__ = ["Codec", "PixelCodec", "to_latents"]
