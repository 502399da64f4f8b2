"""The parts of a Wan 2.1 transformer block, in its arithmetic: fp32 norms, modulation and residual around matmuls in `dtype`.

    modulate(x; shift, scale) = LN(x) (1 + scale) + shift
    x <- x + gate_1 * SelfAttention(modulate(x; shift_1, scale_1))
    x <- x + CrossAttention(LN_affine(x), text)                               (models with text)
    x <- x + gate_2 * MLP(modulate(x; shift_2, scale_2))

The six vectors are a learned table per block plus a projection of the noise level, one set per frame, never per token.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from fourreal.models.attention import clip_attention, cross_attention
from fourreal.parallel.activations import BATCH, GRID, TENSOR, axis_size, locally

EPSILON = 1e-6
T = TypeVar("T")
GATES = (2, 5)  # of the six modulation vectors: shift, scale, gate of the attention, shift, scale, gate of the MLP


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` modules as one, every parameter with a leading layer axis; run with `lax.scan` over the module."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), depth))


def linear(in_width: int, out_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, init=None) -> nnx.Linear:
    """A linear map with bias: fp32 parameters, matmul in `dtype`; Xavier unless `init` says otherwise."""
    init = init or nnx.initializers.xavier_uniform()
    return nnx.Linear(in_width, out_width, dtype=dtype, kernel_init=init, rngs=rngs, dot_general=dot)


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


def layer_norm(x: Float[Array, "*lead d"]) -> Float[Array, "*lead d"]:
    """Layer norm without scale and bias, in fp32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)


def modulate(
    x: Float[Array, "*lead s d"], shift: Float[Array, "*lead d"], scale: Float[Array, "*lead d"]
) -> Float[Array, "*lead s d"]:
    """Layer norm with a shift and scale per frame."""
    return layer_norm(x) * (1 + scale[..., None, :]) + shift[..., None, :]


def sinusoid(position: Float[Array, "*lead"], width: int) -> Float[Array, "*lead width"]:
    """[cos, sin] of position * 10000^(-i / (width/2))."""
    half = width // 2
    angle = position[..., None].astype(jnp.float32) * jnp.exp(-np.log(1e4) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rotary_angles(
    frame: Int[np.ndarray, "f"] | np.ndarray, height: int, width: int, head_size: int
) -> Float[np.ndarray, "f s e/2"]:
    """Angles of the 3-axis rotary embedding for the tokens of frames at positions `frame`, y and x counted in patches.

    Wan splits a head into time, y and x with 2 (e // 6) numbers each for y and x and the rest for time. Computed on the host
    in fp64, since positions are static.
    """
    space = 2 * (head_size // 6)
    sizes = (head_size - 2 * space, space, space)
    frequencies = [1e4 ** (-np.arange(0, size, 2) / size) for size in sizes]
    f, y, x = np.meshgrid(frame, np.arange(height), np.arange(width), indexing="ij")
    angles = np.concatenate([p[..., None] * w for p, w in zip((f, y, x), frequencies, strict=True)], axis=-1)
    return rearrange(angles, "f h w e -> f (h w) e").astype(np.float32)


def rotate(x: Float[Array, "*lead f s h e"], angles: Float[np.ndarray, "*f s e/2"]) -> Float[Array, "*lead f s h e"]:
    """Turns each pair (i, i + e/2) of a head by its angle, in fp32; `pairs_apart` brings Wan's neighbours there."""
    cos, sin = (np.tile(trig(angles), 2)[..., None, :] for trig in (np.cos, np.sin))
    x = x.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def pairs_apart(module: T, heads: int) -> T:
    """A map to queries or keys, or their norm, with a head's even outputs first, then its odd ones.

    Their products stay, and `rotate` reads whole vectors instead of every other number: a step of Wan's 1.3B, planned for a
    v5e, moves 1.32 instead of 1.59 TiB through a chip's memory.
    """
    return jax.tree.map(lambda leaf: rearrange(leaf, "... (h half pair) -> ... (h pair half)", h=heads, pair=2), module)


class SelfAttention(nnx.Module):
    """Multi-head attention with RMS norm of queries and keys over the full width, before the head split."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        make = functools.partial(linear, width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value, self.out = make(), make(), make(), make()
        norm = functools.partial(nnx.RMSNorm, width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)
        self.query_norm, self.key_norm = norm(), norm()
        self.heads = heads

    def project(
        self, x: jax.Array, source: jax.Array, arrange: Callable[[T], T] = lambda module: module
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries of `x`, keys and values of `source`: [..., d] to [..., h, e]; `arrange` changes the maps to q and k."""
        query, query_norm, key, key_norm = map(arrange, (self.query, self.query_norm, self.key, self.key_norm))
        q, k, v = query_norm(query(x)), key_norm(key(source)), self.value(source)
        return tuple(rearrange(part, "... (h e) -> ... h e", h=self.heads) for part in (q, k, v))

    def __call__(self, x: Float[Array, "*lead f s d"], angles: jax.Array, attention: Callable) -> jax.Array:
        q, k, v = self.project(x, x, functools.partial(pairs_apart, heads=self.heads))
        q, k = (rotate(part, angles).astype(v.dtype) for part in (q, k))
        seen = locally(attention, lead=x.ndim - 3)(q, k, v)
        return self.out(rearrange(seen, "... h e -> ... (h e)"))


class CrossAttention(SelfAttention):
    """Tokens look at the text; padded text positions take part, as Wan was trained."""

    def __call__(
        self, x: Float[Array, "*lead f s d"], text: Float[Array, "*lead l d"], attention: Callable
    ) -> jax.Array:
        frames = x.shape[-3]
        q, k, v = self.project(rearrange(x, "... f s d -> ... (f s) d"), text)
        seen = locally(attention, lead=x.ndim - 3)(q.astype(v.dtype), k.astype(v.dtype), v)
        out = self.out(rearrange(seen, "... h e -> ... (h e)"))
        return rearrange(out, "... (f s) d -> ... f s d", f=frames)


class MLP(nnx.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, in_width: int, width: int, out_width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.in_ = linear(in_width, width, dtype=dtype, rngs=rngs)
        self.out = linear(width, out_width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jax.nn.gelu(self.in_(x), approximate=True))


class Block(nnx.Module):
    """One transformer block over clips `[..., f, s, d]`; `attention` decides which tokens see each other, `cross` the text."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, text: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        # Wan's table is small noise; its two gates start at 1 here, so that a fresh block already passes what it computes.
        table = jax.random.normal(rngs.params(), (6, width)) / width**0.5
        self.modulation = nnx.Param(table.at[jnp.array(GATES)].add(1.0))
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, mlp_width, width, dtype=dtype, rngs=rngs)
        if text:
            self.cross_norm = nnx.LayerNorm(
                width, epsilon=EPSILON, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
            )
            self.cross_attention = CrossAttention(width, heads, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*lead f s d"],
        six: Float[Array, "*lead f 6 d"],
        angles: Float[Array, "f s e/2"],
        text: Float[Array, "*lead l d"] | None = None,
        attention: Callable = clip_attention,
        cross: Callable = cross_attention,
    ) -> Float[Array, "*lead f s d"]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = rearrange(
            six + self.modulation[...], "... six d -> six ... d"
        )
        x = x + gate_1[..., None, :] * self.attention(modulate(x, shift_1, scale_1), angles, attention)
        if text is not None:
            x = x + self.cross_attention(self.cross_norm(x), text, cross)
        return x + gate_2[..., None, :] * self.mlp(modulate(x, shift_2, scale_2))
