"""`Stage`: given frames in, all frames out; the one place where pixels, a codec, a denoiser and a sampler meet.

Training's validation, sampling, evaluation and ablation all sample through it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from fourreal.codecs import Codec, PixelCodec, to_latents
from fourreal.conditions import Conditions
from fourreal.diffusion.denoiser import Denoiser
from fourreal.diffusion.flow import SIGMA_FLOOR
from fourreal.diffusion.guidance import Branch, Guided
from fourreal.diffusion.samplers import Euler, Sampler, integrate, noise_levels
from fourreal.grid import Known
from fourreal.models.build import Params


@dataclasses.dataclass(frozen=True)
class Stage:
    """How a model is sampled; hashable, so that it can be a static argument."""

    denoiser: Denoiser
    codec: Codec = PixelCodec()
    sampler: Sampler = Euler()
    shift: float = 1.0
    """of the noise levels, as in training"""

    def levels(self, steps: int) -> Float[np.ndarray, "steps+1"]:
        """The noise levels of so many steps; an x0-model is asked at none below those of its training."""
        return noise_levels(steps, self.shift, SIGMA_FLOOR if self.denoiser.prediction == "x0" else 0.0)

    def __call__(
        self,
        params: Params,
        codec_parameters: Any,
        frames: Shaped[Array, "b v t h w c"],
        given: Bool[Array, "b v u"],
        noise: Float[Array, "b v u y x c"],
        conditions: Conditions | None = None,
        *,
        valid: Bool[Array, "b v u y x"] | None = None,
        steps: int,
        branches: Sequence[Branch] = (Branch(),),
        weights: Float[Array, "branches"] | Float[Array, "rows branches"] | None = None,
    ) -> tuple[UInt8[Array, "b v t h w 3"], Bool[Array, "b"]]:
        """(all frames as pixels, whether the numbers behind each example's are finite).

        Args:
            params: of the model.
            codec_parameters: of the codec.
            frames: uint8 pixels, or latents; only the given ones are read.
            given: which latents are given, see `Codec.known`.
            noise: in the shape of the latents.
            conditions: by name.
            valid: pixels of the given latents that hold what they should; None: all.
            steps: of the sampler; static.
            branches: of guidance; static.
            weights: of the branches, the same for all evaluations or one row each; None for one branch.
        """
        known = Known(to_latents(self.codec, codec_parameters, frames), given, valid=valid)
        latents = self.integrate(params, known, noise, conditions, steps=steps, branches=branches, weights=weights)
        return self.codec.decode(codec_parameters, latents), jnp.isfinite(latents).all(axis=tuple(range(1, 6)))

    def integrate(
        self,
        params: Params,
        known: Known,
        noise: Float[Array, "b v u y x c"],
        conditions: Conditions | None = None,
        *,
        steps: int,
        branches: Sequence[Branch] = (Branch(),),
        weights: Array | None = None,
    ) -> Float[Array, "b v u y x c"]:
        """The same in the codec's space."""
        guided = Guided(self.denoiser, tuple(branches))

        def denoise(x: jax.Array, sigma: jax.Array, row: jax.Array) -> jax.Array:
            at = weights if weights is None or jnp.ndim(weights) == 1 else weights[row]
            return guided(params, x, sigma, known, conditions, weights=at)

        return integrate(denoise, noise, self.levels(steps), self.sampler)
