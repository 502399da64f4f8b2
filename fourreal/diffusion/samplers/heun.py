"""Heun's method: order 2, an Euler step and then its correction at the level reached; the last step is Euler.

    x' = x + (sigma' - sigma) [u(x, sigma) + u(x_e, sigma')] / 2,     x_e = x0 + (sigma' / sigma) (x - x0)

With u = (x - x0) / sigma, and x0' the answer to x_e at sigma', that is

    x' = x_e + (sigma / sigma' - 1) (x0' - x0) / 2

Rows alternate: the Euler step is evaluated at sigma, the correction at sigma' with ratio 1.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fourreal.diffusion.samplers.base import Sampler


class HeunState(NamedTuple):
    x: jax.Array
    x0: jax.Array
    """the evaluation before"""


@dataclasses.dataclass(frozen=True)
class Heun(Sampler):
    """Steps that are averaged over both ends: 2N - 1 evaluations for N steps."""

    kind: ClassVar[str] = "heun"

    def rows(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        sigma = np.asarray(levels, np.float64)
        before, after = sigma[:-2], sigma[1:-1]
        steps = {"sigma": sigma[:-1], "ratio": sigma[1:] / sigma[:-1], "correction": np.zeros(len(sigma) - 1)}
        corrections = {"sigma": after, "ratio": np.ones(len(after)), "correction": (before / after - 1) / 2}
        rows = {name: np.empty(2 * len(sigma) - 3, np.float32) for name in steps}
        for name, values in rows.items():
            values[0::2], values[1::2] = steps[name], corrections[name]
        return rows

    def init(self, noise: jax.Array) -> HeunState:
        return HeunState(noise, jnp.zeros_like(noise))

    def step(
        self, state: HeunState, x0: jax.Array, row: dict[str, jax.Array], key: jax.Array | None = None
    ) -> HeunState:
        x = x0 + row["ratio"] * (state.x - x0) + row["correction"] * (x0 - state.x0)
        return HeunState(x, x0)
