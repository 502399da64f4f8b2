"""The pretrained autoencoders of Wan 2.1 and 2.2."""

from fourreal.codecs.wan.codec import Wan22Codec, WanCodec
from fourreal.codecs.wan.config import WAN_2_1, WAN_2_2, WanVAEConfig
from fourreal.codecs.wan.tiles import Tiles

__all__ = ["WAN_2_1", "WAN_2_2", "Tiles", "Wan22Codec", "WanCodec", "WanVAEConfig"]
