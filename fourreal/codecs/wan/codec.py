"""`wan` and `wan2.2`: a model works on the latents of a pretrained autoencoder, Wan 2.1's or Wan 2.2's.

               what is encoded      T        factors (t, h, w)           a latent depends on
    per_cell   each frame, alone    any      1, 8, 8     (2.2: 16, 16)   its frame
    per_view   each view, a video   4k + 1   4, 8, 8     (2.2: 16, 16)   all frames of its view up to its last one

An image's latent is exactly a video's first latent, so with `per_cell` both axes of a grid hold latents that the pretrained
model knows. With `per_view` a view costs a quarter of the tokens, but a freeze-time video can be given at t = 0 alone.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from fourreal.codecs.codec import Codec
from fourreal.codecs.wan.config import WAN_2_1, WAN_2_2, WanVAEConfig
from fourreal.codecs.wan.layers import Params
from fourreal.codecs.wan.network import decode, encode
from fourreal.codecs.wan.parameters import random_parameters, read_parameters
from fourreal.codecs.wan.tiles import Tiles
from fourreal.errors import UserError
from fourreal.grid import to_uint8, to_unit
from fourreal.parallel.activations import spread
from fourreal.serialize import to_json

RANDOM = "random"  # instead of a folder of weights


@dataclasses.dataclass(frozen=True)
class WanCodec(Codec):
    """The autoencoder of Wan 2.1; cells (or views) are spread over the devices, of which each codes one at a time."""

    weights: str = ""
    """folder of the autoencoder as diffusers writes it; empty: not here, enough for training on stored latents; random:
    random numbers, for tests"""
    mode: Literal["per_cell", "per_view"] = "per_cell"
    tiles: Tiles | None = None
    """of a frame, for less memory; None: whole frames"""
    network: WanVAEConfig = WAN_2_1

    kind = "wan"
    in_pieces = True

    @property
    def channels(self) -> int:
        return self.network.z_dim

    @property
    def factors(self) -> tuple[int, int, int]:
        space = self.network.space_factor
        return (1 if self.mode == "per_cell" else self.network.time_factor), space, space

    @property
    def present(self) -> bool:
        return bool(self.weights)

    def parameters(self) -> Params:
        """Raises UserError where none is named, and for a folder that does not hold this network's weights."""
        if not self.weights:
            raise UserError(
                f"the codec {self.kind} has no weights here: name the autoencoder's folder, often vae, with --vae where one "
                f"samples, with --codec {self.kind}:weights=FOLDER elsewhere"
            )
        if self.weights == RANDOM:
            return random_parameters(self.network)
        return jax.tree.map(jnp.asarray, read_parameters(self.weights, self.network))

    def latents(self) -> dict[str, Any]:
        return {name: value for name, value in to_json(self).items() if name not in ("weights", "tiles")}

    def groups(self, times: int) -> list[range]:
        """Frame 0 alone, then `factors[0]` at a time. Raises UserError for times that are not 4k + 1 where views are videos."""
        step = self.factors[0]
        if (times - 1) % step:
            raise UserError(
                f"{times} times: with mode=per_view the codec takes {step} k + 1 ({times - (times - 1) % step}, say); give "
                "so many, or take mode=per_cell"
            )
        return [range(1), *(range(t, t + step) for t in range(1, times, step))]

    def encode(self, parameters: Params, frames: UInt8[Array, "b v t h w 3"]) -> Float[Array, "b v u y x c"]:
        def run(clip: jax.Array, parameters: Params) -> jax.Array:
            return encode(parameters, self.network, to_unit(clip), self.tiles)

        return self.joined(spread(run, self.pieces(frames), parameters), *frames.shape[:2])

    def decode(self, parameters: Params, latents: Float[Array, "b v u y x c"]) -> UInt8[Array, "b v t h w 3"]:
        def run(clip: jax.Array, parameters: Params) -> jax.Array:
            return to_uint8(decode(parameters, self.network, clip, self.tiles))

        return self.joined(spread(run, self.pieces(latents), parameters), *latents.shape[:2])

    def pieces(self, x: Shaped[Array, "b v t *rest"]) -> Shaped[Array, "n 1 f *rest"]:
        """Cells, or views."""
        return rearrange(x, self._pattern)

    def joined(self, pieces: Shaped[Array, "n 1 f *rest"], count: int, views: int) -> Shaped[Array, "b v t *rest"]:
        grid, parts = self._pattern.split(" -> ")
        return rearrange(pieces, f"{parts} -> {grid}", b=count, v=views)

    @property
    def _pattern(self) -> str:
        return "b v t ... -> (b v t) 1 1 ..." if self.mode == "per_cell" else "b v t ... -> (b v) 1 t ..."

    def known(self, mask: Bool[np.ndarray, "*lead t"]) -> Bool[np.ndarray, "*lead u"]:
        """Which latents are given. Raises UserError, with mode per_view, where a view's given frames are not its first ones."""
        given = super().known(mask)
        if self.mode == "per_view" and (given != np.logical_and.accumulate(given, axis=-1)).any():
            raise UserError(
                "a view's given frames are not its first ones: with mode=per_view a latent depends on all earlier frames of "
                "its view, so give these too (a freeze-time video stands at t = 0), or take mode=per_cell"
            )
        return given

    def givable(self, mask: Bool[np.ndarray, "*lead u"]) -> Bool[np.ndarray, "*lead u"]:
        """With mode per_view, a view's given latents from its first one on, up to the first that is missing."""
        return mask if self.mode == "per_cell" else np.logical_and.accumulate(mask, axis=-1)

    def all_of(self, value: Bool[np.ndarray, "v t *rest"]) -> Bool[np.ndarray, "v u *rest"]:
        """What holds for all frames that each latent depends on."""
        value = super().all_of(value)
        return value if self.mode == "per_cell" else np.logical_and.accumulate(value, axis=1)


@dataclasses.dataclass(frozen=True)
class Wan22Codec(WanCodec):
    """The autoencoder of Wan 2.2's TI2V-5B."""

    network: WanVAEConfig = WAN_2_2

    kind = "wan2.2"
