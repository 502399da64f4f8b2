"""What the fusions of one stream share: their head, and the control that gives them as many parameters as soft's sync.

matched:  y <- y + ModLinear([x, y]; sigma),   x a block's input, y its output
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fourreal.models.fusions.fusion import Fusion, Run
from fourreal.models.fusions.sync import TIME, VIEW, ModLinear
from fourreal.parallel.activations import place_tokens


@dataclasses.dataclass(frozen=True)
class OneStream(Fusion):
    """One stream of tokens `[b v t s d]`."""

    matched: bool = False
    """after every block a linear map with soft's parameters, zero at first; a control"""

    def make(self, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module | None:
        return ModLinear(width, 2, dtype=dtype, rngs=rngs) if self.matched else None

    def add(self, linear: ModLinear | None, x: Array, y: Array, run: Run, *outputs: int) -> Array:
        """y, a block's output for x, plus the control's outputs."""
        if linear is None:
            return y
        terms = linear(VIEW, x, run.shift_scale, outputs) + linear(TIME, y, run.shift_scale, outputs)
        return sum(terms, start=y + sum(linear.bias[output] for output in outputs))

    def start(self, x: Float[Array, "b v t s d"], run: Run) -> Any:
        return place_tokens(x)

    def finish(self, carry: Float[Array, "b v t s d"], run: Run) -> dict[str, Float[Array, "b v t s k"]]:
        return {"stream": run.base.head(carry, run.temb)}
