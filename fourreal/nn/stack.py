"""Equal layers as one module, and what they keep for backward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules as one, every parameter with a leading layer axis; run with `lax.scan` over the module."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), depth))


def keep_rounded(layer: Callable, x: Any, parameters: Any, dtype: jnp.dtype) -> Callable:
    """`layer(x, parameters)`, of which only `x` in `dtype` is kept for backward, which computes the layer again from that.

    What it returns is unchanged; its gradients are those at the rounded `x`.
    """
    run, shared = jax.closure_convert(layer, x, parameters)

    @jax.custom_vjp
    def rounded(x: Any, parameters: Any, *shared: jax.Array) -> Any:
        return run(x, parameters, *shared)

    def forward(x: Any, parameters: Any, *shared: jax.Array) -> tuple:
        kept = jax.tree.map(lambda leaf: leaf.astype(dtype), x)
        return run(x, parameters, *shared), (kept, parameters, shared)

    def backward(residuals: tuple, gradient: Any) -> tuple:
        kept, parameters, shared = residuals
        again = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), kept, gradient[0])
        return jax.vjp(run, again, parameters, *shared)[1](gradient)

    rounded.defvjp(forward, backward)
    return lambda x, parameters: rounded(x, parameters, *shared)
