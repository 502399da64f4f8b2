"""XLA's attention for a few sequences at a time, so that their logits stay in a CPU's cache: for CPUs only.

Heads come before tokens, and are moved there for all parts at once, by what computes them. Backward has keys before queries: a
product with the transpose of what was just computed is slow there. 16 sequences of 512 tokens take 76 ms of processor time
forward instead of 162, and 300 instead of 420 with backward.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from fourreal.nn.kernels.xla import average, matmul, product

WRITTEN_OUT = 8  # parts, at most; more run in a loop


def forward(q, k, v, kernel, with_lse):
    """Output `[b q h e]` and log-sum-exp `[b q h 1]`; `kernel.cache` is the size of a part's logits in bytes."""

    def part(q, k, v):
        return average(matmul("...qe,...ke->...qk", q * q.shape[-1] ** -0.5, k), v)

    return tuple(jnp.swapaxes(x, 1, 2) for x in _by_parts(part, (q, k, v), kernel.cache))


def backward(q, k, v, out, lse, do, kernel):
    """Gradients of q, k and v."""

    def part(q, k, v, lse, from_output, do):
        lse, from_output = (jnp.swapaxes(x, -1, -2) for x in (lse, from_output))
        scale = q.shape[-1] ** -0.5
        q, scaled_k = q * scale, k * scale
        weights = jnp.exp(matmul("...ke,...qe->...kq", k, q) - lse)
        logits = weights * (matmul("...ke,...qe->...kq", v, do) - from_output)
        weights, logits = weights.astype(v.dtype), logits.astype(v.dtype)
        dq = matmul("...ek,...kq->...eq", jnp.swapaxes(scaled_k, -1, -2), logits)
        dk = matmul("...kq,...qe->...ke", logits, q)
        return dq.astype(q.dtype), dk.astype(k.dtype), matmul("...kq,...qe->...ke", weights, do).astype(v.dtype)

    dq, dk, dv = _by_parts(part, (q, k, v, lse, product(do, out), do), kernel.cache)
    return rearrange(dq, "b h e q -> b q h e"), *(jnp.swapaxes(x, 1, 2) for x in (dk, dv))


def _by_parts(function: Callable, arrays: tuple[Float[Array, "b s h e"], ...], cache: int):
    """A function of `[... h s e]` over the batch, as many sequences at once as the cache holds the logits of.

    Few parts are written out: XLA's CPU runtime then works on several at once, and no core waits at the end of each product.
    On two cores a training step of `configs/nano.py` is 7 % faster.
    """
    arrays = tuple(jnp.swapaxes(x, 1, 2) for x in arrays)
    count, heads, queries, _ = arrays[0].shape
    size = max(1, cache // (4 * heads * queries * arrays[1].shape[2]))
    if count > WRITTEN_OUT * size:
        return jax.lax.map(lambda part: function(*part), arrays, batch_size=size)
    parts = [function(*(x[i : i + size] for x in arrays)) for i in range(0, count, size)]
    return jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
