"""Softmax attention, the only place that knows kernels.

    attend(q, k, v) = softmax(q k^T / sqrt(e)) v
    fused: a token sees the cells of its own view (A) or its own time (B), its own cell (C) once; with log-sum-exps la, lb, lc
           o = (e^la oa + e^lb ob - e^lc oc) / (e^la + e^lb - e^lc)          (4Real-Video-V2, section 3, without its mask)

Logits and softmax are fp32. The XLA path is laid out for CPU: the value product runs on contiguous values of a head and the
division follows it (7.6 ms of processor time for 16 sequences of 256 tokens and 4 heads of 64; 10.4 with the values left
strided, 14.0 with `jax.nn.dot_product_attention`). Moving queries and keys likewise gains nothing, and rounds the logits of a
cell apart between its three clips: the fused merge then errs by twice as much where a cell's own tokens hold all weight.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float


def attend_with_lse(
    q: Float[Array, "*lead q h e"], k: Float[Array, "*lead k h e"], v: Float[Array, "*lead k h e"]
) -> tuple[Float[Array, "*lead q h e"], Float[Array, "*lead q h 1"]]:
    """Attention and the log-sum-exp of its logits (fp32); leading axes of size 1 broadcast."""
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum("...qhe,...khe->...hqk", q * scale, k, preferred_element_type=jnp.float32)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = jnp.swapaxes(v, -3, -2)
    out = jnp.einsum("...qk,...ke->...qe", weights.astype(v.dtype), values, preferred_element_type=jnp.float32) / total
    return tuple(jnp.swapaxes(x, -3, -2) for x in (out.astype(v.dtype), jnp.log(total) + peak))


def attend(
    q: Float[Array, "*lead q h e"], k: Float[Array, "*lead k h e"], v: Float[Array, "*lead k h e"]
) -> Float[Array, "*lead q h e"]:
    """softmax(q k^T / sqrt(e)) v over the token axis."""
    return attend_with_lse(q, k, v)[0]


def clip_attention(
    q: Float[Array, "*lead f s h e"], k: Float[Array, "*lead f s h e"], v: Float[Array, "*lead f s h e"]
) -> Float[Array, "*lead f s h e"]:
    """Every token of a clip sees all tokens of the clip."""
    joined = [rearrange(x, "... f s h e -> ... (f s) h e") for x in (q, k, v)]
    return rearrange(attend(*joined), "... (f s) h e -> ... f s h e", f=q.shape[-4])


def fused_attention(
    q: Float[Array, "b v t s h e"], k: Float[Array, "b v t s h e"], v: Float[Array, "b v t s h e"]
) -> Float[Array, "b v t s h e"]:
    """Every token of a grid sees the cells of its own view or its own time; exact, without a mask."""
    views, times = q.shape[1:3]
    own_view = [rearrange(x, "b v t s h e -> b v (t s) h e") for x in (q, k, v)]
    own_time = [rearrange(x, "b v t s h e -> b t (v s) h e") for x in (q, k, v)]
    parts = [
        [rearrange(x, "b v (t s) h e -> b v t s h e", t=times) for x in attend_with_lse(*own_view)],
        [rearrange(x, "b t (v s) h e -> b v t s h e", v=views) for x in attend_with_lse(*own_time)],
        attend_with_lse(q, k, v),
    ]
    outs, lses = zip(*parts, strict=True)
    peak = jax.lax.stop_gradient(jnp.maximum(lses[0], lses[1]))  # the own cell's is never larger
    a, b, c = (jnp.exp(lse - peak) for lse in lses)
    merged = (a * outs[0] + b * outs[1] - c * outs[2]) / (a + b - c)
    return merged.astype(q.dtype)
