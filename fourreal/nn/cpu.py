"""A matmul whose gradient is fast on CPUs too. On other platforms, and on a mesh, it is the plain matmul.

A reader of the models may take `dot(x, W)` for x W.
"""

import jax
from jaxtyping import Array, Float

from fourreal.parallel.activations import BATCH, GRID, TENSOR, axis_size


def dot(x: Float[Array, "*lead k"], kernel: Float[Array, "k n"], *_, **options) -> Float[Array, "*lead n"]:
    """x W, with `lax.dot`'s options. Tokens count along one axis, where no mesh cuts several.

    A kernel's gradient is a product over all tokens. XLA's CPU compiler first copies one factor where they lie along several
    axes (66 instead of 180 GFLOP/s for 8192 of them and 256 x 1024), and is slow where the gradient is higher than wide.
    """
    if axis_size(*BATCH, GRID, TENSOR) > 1:
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **options)
    if kernel.shape[0] > kernel.shape[1]:
        kernel = jax.lax.platform_dependent(kernel, cpu=_gradient_turned, default=lambda kernel: kernel)
    return jax.lax.dot(x.reshape(-1, x.shape[-1]), kernel, **options).reshape(*x.shape[:-1], -1)


def _gradient_turned(kernel: jax.Array) -> jax.Array:
    """The kernel, whose gradient is computed as that of its transpose."""
    return jax.lax.optimization_barrier(kernel.T).T
