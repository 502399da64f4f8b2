"""What a codec is: between the pixels of frames and the space that a model works in.

A codec is one file here, or in another package: a frozen dataclass with `kind`. Its parameters are arguments of every call. It
may merge times: then each latent stands for a group of frames, is given or missing only as a whole, and valid where all are.
"""

from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from fourreal.errors import UserError
from fourreal.serialize import Kind, to_json


class Codec(Kind):
    """A kind of codec."""

    family: ClassVar[str] = "codec"
    channels: ClassVar[int] = 3
    """of a latent"""
    factors: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    """times, height and width of pixels for one of a latent"""
    in_pieces: ClassVar[bool] = False
    """coding a piece of a grid takes so long that sampling does it in programs of its own, some pieces at a time"""

    @property
    def present(self) -> bool:
        """Whether its parameters are here; training on stored latents does without."""
        return True

    def parameters(self) -> Any:
        """Its parameters, a pytree of arrays. Raises UserError where they are not here."""
        return {}

    def givable(self, mask: Bool[np.ndarray, "*lead u"]) -> Bool[np.ndarray, "*lead u"]:
        """A mask of latents less those that can be given only with others that are not."""
        return mask

    def latents(self) -> dict[str, Any]:
        """What tells its latents from those of others, as JSON values."""
        return to_json(self)

    def groups(self, times: int) -> list[range]:
        """The frames of every latent. Raises UserError for a number of times that it cannot merge."""
        return [range(t, t + 1) for t in range(times)]

    def encode(self, parameters: Any, frames: UInt8[Array, "b v t h w 3"]) -> Float[Array, "b v u y x c"]:
        """Latents of frames."""
        raise NotImplementedError

    def decode(self, parameters: Any, latents: Float[Array, "b v u y x c"]) -> UInt8[Array, "b v t h w 3"]:
        """Frames of latents; values outside the pixels' range are clipped."""
        raise NotImplementedError

    def pieces(self, x: Shaped[Array, "b v t *rest"]) -> Shaped[Array, "n w f *rest"]:
        """What of a grid, frames or latents, is coded by itself: each piece is again a grid, of `w` views."""
        return x

    def joined(self, pieces: Shaped[Array, "n w f *rest"], count: int, views: int) -> Shaped[Array, "b v t *rest"]:
        """The `count` grids of so many views from their pieces."""
        return pieces

    def shape(self, times: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(times, height, width, channels) of the latents of such a video. Raises UserError for sides it does not divide."""
        _, down, across = self.factors
        if height % down or width % across:
            raise UserError(f"frames of {height} x {width}: the codec needs multiples of {down} and {across}")
        return len(self.groups(times)), height // down, width // across, self.channels

    def known(self, mask: Bool[np.ndarray, "*lead t"]) -> Bool[np.ndarray, "*lead u"]:
        """Which latents are given. Raises UserError for a latent of which only some frames are given."""
        groups = [mask[..., list(group)] for group in self.groups(mask.shape[-1])]
        for group in groups:
            if (group.any(-1) != group.all(-1)).any():
                raise UserError(
                    f"the codec merges times in groups {[len(g) for g in self.groups(mask.shape[-1])]}, and one is given only "
                    "in part: give all its frames, or none"
                )
        return np.stack([group.all(-1) for group in groups], axis=-1)

    def all_of(self, value: Bool[np.ndarray, "v t *rest"]) -> Bool[np.ndarray, "v u *rest"]:
        """What holds for all frames of each latent: which cells exist, which pixels are valid (height and width follow)."""
        value = np.stack([value[:, list(group)].all(1) for group in self.groups(value.shape[1])], axis=1)
        if value.ndim == 2:
            return value
        (_, down, across), (height, width) = self.factors, value.shape[2:]
        parts = value.reshape(*value.shape[:2], height // down, down, width // across, across)
        return parts.all((3, 5))


def to_latents(codec: Codec, parameters: Any, frames: jax.Array) -> jax.Array:
    """Latents of uint8 pixels; stored latents, in floating point, in float32."""
    return codec.encode(parameters, frames) if frames.dtype == np.uint8 else frames.astype(np.float32)
