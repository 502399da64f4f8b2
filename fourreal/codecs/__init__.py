"""Between pixels and the space that a model works in, one file or folder each."""

from fourreal.codecs.codec import Codec, to_latents
from fourreal.codecs.pixels import PixelCodec
from fourreal.codecs.wan import Wan22Codec, WanCodec

__all__ = ["Codec", "PixelCodec", "Wan22Codec", "WanCodec", "to_latents"]
