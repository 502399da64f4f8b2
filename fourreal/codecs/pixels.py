"""`pixels`: a model works on pixels in [-1, 1]."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, UInt8

from fourreal.codecs.codec import Codec
from fourreal.grid import to_uint8, to_unit


@dataclasses.dataclass(frozen=True)
class PixelCodec(Codec):
    """The identity, but for the range."""

    kind = "pixels"

    def encode(self, parameters: Any, frames: UInt8[Array, "b v t h w 3"]) -> Float[Array, "b v t h w 3"]:
        return to_unit(frames)

    def decode(self, parameters: Any, latents: Float[Array, "b v t h w 3"]) -> UInt8[Array, "b v t h w 3"]:
        return to_uint8(latents)
