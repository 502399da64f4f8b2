"""Softmax attention: over the tokens of a clip, to a text, and over a token's own view and own time in a grid.

    attend(q, k, v) = softmax(q k^T / sqrt(e)) v
    fused: a token sees the cells of its own view (A) or its own time (B), its own cell (C) once; with log-sum-exps la, lb, lc
           o = (e^la oa + e^lb ob - e^lc oc) / (e^la + e^lb - e^lc)          (4Real-Video-V2, section 3, without its mask)
           and its gradient is that of A plus that of B minus that of C, each taken with the merged o and log-sum-exp

The kernels are in `kernels/`. A flash kernel's output and log-sum-exp carry a name for the remat policies (`video_dit.py`):
where they are kept, the backward pass does not run its forward again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fourreal.nn import kernels
from fourreal.nn.kernels import XLA, Kernel
from fourreal.parallel.activations import missing_clips, swap_view_time

SELF_NAME, CROSS_NAME = "attention_out", "cross_attention_out"  # for the remat policies


def attend_with_lse(
    q: Float[Array, "*lead q h e"],
    k: Float[Array, "*lead k h e"],
    v: Float[Array, "*lead k h e"],
    kernel: Kernel = XLA,
) -> tuple[Float[Array, "*lead q h e"], Float[Array, "*lead q h 1"]]:
    """Attention and the log-sum-exp of its logits (fp32); leading axes of size 1 broadcast. XLA alone differentiates it."""
    return kernels.forward(*_broadcast(q, k, v, kernel), kernel)


def attend(
    q: Float[Array, "*lead q h e"],
    k: Float[Array, "*lead k h e"],
    v: Float[Array, "*lead k h e"],
    kernel: Kernel = XLA,
    name: str = SELF_NAME,
) -> Float[Array, "*lead q h e"]:
    """softmax(q k^T / sqrt(e)) v over the token axis; leading axes of size 1 broadcast. `name` is for the remat policies."""
    if kernels.plain(q, k, kernel):
        return checkpoint_name(attend_with_lse(q, k, v)[0], name)
    return _flash(*_broadcast(q, k, v, kernel), kernel, name)


def _broadcast(q, k, v, kernel: Kernel) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k and v with equal leading axes, as the flash kernels need them; XLA broadcasts without a copy."""
    if kernel.name == "xla" or q.shape[:-3] == k.shape[:-3]:
        return q, k, v
    lead = jnp.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    return tuple(jnp.broadcast_to(x, lead + x.shape[-3:]) for x in (q, k, v))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _flash(q, k, v, kernel: Kernel, name: str) -> jax.Array:
    """`attend` by a kernel's own forward and backward."""
    return kernels.forward(q, k, v, kernel, with_lse=False)[0]


def _flash_forward(q, k, v, kernel, name):
    out, lse = (checkpoint_name(x, name) for x in kernels.forward(q, k, v, kernel))
    return out, (q, k, v, out, lse)


def _flash_backward(kernel, name, residuals, do):
    return kernels.backward(*residuals, do, kernel)


_flash.defvjp(_flash_forward, _flash_backward)


def _joined(x: Float[Array, "*lead f s h e"]) -> Float[Array, "*lead f*s h e"]:
    return rearrange(x, "... f s h e -> ... (f s) h e")


def _parted(x: Float[Array, "*lead f*s h e"], frames: int) -> Float[Array, "*lead f s h e"]:
    return rearrange(x, "... (f s) h e -> ... f s h e", f=frames)


def clip_attention(
    q: Float[Array, "*lead f s h e"],
    k: Float[Array, "*lead f s h e"],
    v: Float[Array, "*lead f s h e"],
    kernel: Kernel = XLA,
) -> Float[Array, "*lead f s h e"]:
    """Every token of a clip sees all tokens of the clip."""
    return _parted(attend(_joined(q), _joined(k), _joined(v), kernel), q.shape[-4])


def cross_attention(
    q: Float[Array, "*lead q h e"],
    k: Float[Array, "*lead l h e"],
    v: Float[Array, "*lead l h e"],
    kernel: Kernel = XLA,
) -> Float[Array, "*lead q h e"]:
    """Every token sees the text, which may be one for all clips of a grid."""
    return attend(q, k, v, kernel, name=CROSS_NAME)


def fused_attention(
    q: Float[Array, "b v t s h e"],
    k: Float[Array, "b v t s h e"],
    v: Float[Array, "b v t s h e"],
    kernel: Kernel = XLA,
    swap: Callable[[jax.Array, int | None], jax.Array] = swap_view_time,
    other: tuple[Float[Array, "b v t s h e"], Float[Array, "b v t s h e"]] | None = None,
    cells: tuple[int, int] | None = None,
) -> Float[Array, "b v t s h e"]:
    """Every token of a grid sees the cells of its own view or its own time; exact, without a mask.

    Args:
        q, k, v: of the whole grid or, with a `swap` to match, of some of its views and all times.
        kernel: runs the three parts.
        swap: moves arrays `[b v t ...]` of any kind to `[b t v ...]` and back. It runs twice forward and twice backward;
            where it is an all-to-all, no more than that leaves the device.
        other: keys and values by which a token sees the other views of its own time, where they are not `k` and `v`: what
            crosses the axis, for whoever replaces it. B and C use them. Where they lift the logits of the own cell by n over
            the largest that the token sees, B - C is a difference of near equals, and the error grows as e^n.
        cells: how many views and times exist, where a mesh has filled up the views (`parallel/activations.py`); none: all.
    """
    kernel = XLA if kernel.name == "chunked" else kernel  # whose backward rounds a cell's logits unlike its forward
    return _fused(q, k, v, other, kernel, swap, cells or (None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _fused(q, k, v, other, kernel, swap, cells) -> jax.Array:
    return _fused_forward(q, k, v, other, kernel, swap, cells)[0]


def _fused_forward(q, k, v, other, kernel, swap, cells):
    views, times = cells
    k_other, v_other = (k, v) if other is None else other
    by_time = swap(jnp.concatenate([q, k_other, v_other], axis=-1), views)
    out_b, lse_b = _clip_forward(*_thirds(by_time), kernel)
    out_b, lse_b = _unpack(swap(_pack(out_b, lse_b), times), out_b, lse_b)
    out_a, lse_a = _clip_forward(q, k, v, kernel)
    out_c, lse_c = kernels.forward(q, k_other, v_other, kernel)
    if views and missing_clips(views):  # a view that does not exist got zeros, and A - C alone may be none
        lse_b = jnp.maximum(lse_b, lse_c)

    peak = jnp.maximum(lse_a, lse_b)  # the own cell's is never larger
    a, b, c = (jnp.exp(lse - peak) for lse in (lse_a, lse_b, lse_c))
    out = ((a * out_a + b * out_b - c * out_c) / (a + b - c)).astype(q.dtype)
    lse = peak + jnp.log(a + b - c)
    out, lse = (checkpoint_name(x, SELF_NAME) for x in (out, lse))
    return out, (q, k, v, other, by_time, out, lse)


def _fused_backward(kernel, swap, cells, residuals, do):
    views, times = cells
    q, k, v, other, by_time, out, lse = residuals
    k_other, v_other = (k, v) if other is None else other
    product = jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    do_b, product_b, lse_b = _unpack(swap(_pack(do, product, lse), views), do, product, lse)
    out_b = _output_with_product(do_b, product_b)  # instead of moving the output too
    of_b = jnp.concatenate(_clip_backward(*_thirds(by_time), out_b, lse_b, do_b, kernel), axis=-1)

    of_a = _clip_backward(q, k, v, out, lse, do, kernel)
    of_c = kernels.backward(q, k_other, v_other, out, lse, do, kernel)
    of_q, *of_keys = zip(of_a, _thirds(swap(of_b, times)), of_c, strict=True)
    if other is None:
        return *(_merged(*parts) for parts in (of_q, *of_keys)), None
    of_other = tuple((b.astype(jnp.float32) - c).astype(b.dtype) for _, b, c in of_keys)
    return _merged(*of_q), *(a for a, _, _ in of_keys), of_other


def _merged(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """A gradient of A plus that of B minus that of C."""
    return (a.astype(jnp.float32) + b - c).astype(a.dtype)


_fused.defvjp(_fused_forward, _fused_backward)


def _clip_forward(q, k, v, kernel) -> list[jax.Array]:
    """Output and log-sum-exp of every clip `[..., f, s, h, e]`."""
    return [_parted(x, q.shape[-4]) for x in kernels.forward(_joined(q), _joined(k), _joined(v), kernel)]


def _clip_backward(q, k, v, out, lse, do, kernel) -> list[jax.Array]:
    """Gradients of q, k and v of every clip `[..., f, s, h, e]`."""
    gradients = kernels.backward(*(_joined(x) for x in (q, k, v, out, lse, do)), kernel)
    return [_parted(x, q.shape[-4]) for x in gradients]


def _thirds(x: Float[Array, "*lead 3*e"]) -> list[jax.Array]:
    return jnp.split(x, 3, axis=-1)


def _pack(*arrays: Float[Array, "*lead _"]) -> jax.Array:
    """Arrays side by side, so that they move as one; of two types all as integers, since a float may be rounded on its way."""
    if len({x.dtype for x in arrays}) > 1:
        arrays = [_bits(x) for x in arrays]
    return jnp.concatenate(arrays, axis=-1)


def _unpack(packed: jax.Array, *like: jax.Array) -> list[jax.Array]:
    """The arrays that `_pack` put side by side, with the sizes and types of `like`."""
    sizes = [x.shape[-1] * x.dtype.itemsize // packed.dtype.itemsize for x in like]
    parts = jnp.split(packed, list(np.cumsum(sizes[:-1])), axis=-1)
    return [part if part.dtype == x.dtype else _floats(part, x.dtype) for part, x in zip(parts, like, strict=True)]


def _bits(x: Float[Array, "*lead e"]) -> jax.Array:
    """The bits of 16-bit floats, or of fp32 as two halves, in unsigned integers."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return rearrange(bits, "... e half -> ... (e half)") if bits.ndim > x.ndim else bits


def _floats(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if dtype.itemsize > bits.dtype.itemsize:
        bits = rearrange(bits, "... (e half) -> ... e half", half=2)
    return jax.lax.bitcast_convert_type(bits, dtype)


def _output_with_product(do: Float[Array, "*lead e"], product: Float[Array, "*lead 1"]) -> Float[Array, "*lead e"]:
    """The shortest `out` with sum(do out) = product, which is all that a backward takes from its output."""
    do32 = do.astype(jnp.float32)
    largest = jnp.max(jnp.abs(do32), axis=-1, keepdims=True)
    largest = jnp.where(largest == 0, 1, largest)
    unit = do32 / largest  # so that squares of small gradients do not vanish
    square = jnp.sum(unit * unit, axis=-1, keepdims=True)
    return (unit * (product / largest) / jnp.where(square == 0, 1, square)).astype(do.dtype)
