"""Equal layers as one module."""

from collections.abc import Callable

import jax
from flax import nnx


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules as one, every parameter with a leading layer axis; run with `lax.scan` over the module."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), depth))
