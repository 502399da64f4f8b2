"""Linear maps and the MLP: fp32 parameters, matmuls in `dtype`."""

import jax
import jax.numpy as jnp
from flax import nnx

from fourreal.nn.cpu import dot


def linear(in_width: int, out_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, init=None) -> nnx.Linear:
    """A linear map with bias: fp32 parameters, matmul in `dtype`; Xavier unless `init` says otherwise."""
    init = init or nnx.initializers.xavier_uniform()
    return nnx.Linear(in_width, out_width, dtype=dtype, kernel_init=init, rngs=rngs, dot_general=dot)


class MLP(nnx.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, in_width: int, width: int, out_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.in_ = linear(in_width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, out_width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jax.nn.gelu(self.in_(x), approximate=True))
