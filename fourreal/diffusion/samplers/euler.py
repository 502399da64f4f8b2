"""Euler's method: order 1, one evaluation a step.

x' = x + (sigma' - sigma) u(x, sigma),  u = (x - x0) / sigma,     that is   x' = x0 + (sigma' / sigma) (x - x0)
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from fourreal.diffusion.samplers.base import Sampler


class EulerState(NamedTuple):
    x: jax.Array


@dataclasses.dataclass(frozen=True)
class Euler(Sampler):
    """Straight steps: N evaluations for N steps."""

    kind: ClassVar[str] = "euler"

    def rows(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        sigma = np.asarray(levels, np.float64)
        rows = {"sigma": sigma[:-1], "ratio": sigma[1:] / sigma[:-1]}
        return {name: values.astype(np.float32) for name, values in rows.items()}

    def init(self, noise: jax.Array) -> EulerState:
        return EulerState(noise)

    def step(
        self, state: EulerState, x0: jax.Array, row: dict[str, jax.Array], key: jax.Array | None = None
    ) -> EulerState:
        return EulerState(x0 + row["ratio"] * (state.x - x0))
