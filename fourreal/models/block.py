"""The parts of a Wan 2.1 transformer block, in its arithmetic: fp32 norms, modulation and residual around matmuls in `dtype`.

    modulate(x; shift, scale) = LN(x) (1 + scale) + shift
    x <- x + gate_1 * SelfAttention(modulate(x; shift_1, scale_1))            (+ a projective branch, see `ProjectiveOut`)
    x <- x + CrossAttention(LN_affine(x), c)                                  (for every condition with tokens c, as text)
    x <- x + gate_2 * MLP(modulate(x; shift_2, scale_2))

The six vectors are a learned table per block plus a projection of the noise level, one set per frame, never per token.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from fourreal.nn.attention import clip_attention, cross_attention
from fourreal.nn.cpu import dot
from fourreal.nn.linear import MLP, linear
from fourreal.nn.norms import EPSILON, modulate
from fourreal.nn.projective import Projective
from fourreal.nn.rotary import pairs_apart, rotate
from fourreal.parallel.activations import locally
from fourreal.parallel.layout import FSDP, TENSOR

T = TypeVar("T")
GATES = (2, 5)  # of the six modulation vectors: shift, scale, gate of the attention, shift, scale, gate of the MLP


class SelfAttention(nnx.Module):
    """Multi-head attention with RMS norm of queries and keys over the full width, before the head split."""

    layout: ClassVar[dict[str, P]] = {
        **{f"{name}.kernel": P(FSDP, TENSOR) for name in ("query", "key", "value")},
        **{f"{name}.bias": P(TENSOR) for name in ("query", "key", "value")},
        **{f"{name}.scale": P(TENSOR) for name in ("query_norm", "key_norm")},
        "out.kernel": P(TENSOR, FSDP),
        "out.bias": P(),
    }
    group: ClassVar[str] = "attention"

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

    def __call__(
        self,
        x: Float[Array, "*lead f s d"],
        angles: jax.Array,
        attention: Callable,
        branches: Sequence[tuple["ProjectiveOut", Projective]] = (),
    ) -> jax.Array:
        """`branches` are further heads, with positions and an output map of their own; one call of `attention` runs all."""
        q, k, v = self.project(x, x, functools.partial(pairs_apart, heads=self.heads))
        heads = [(rotate(q, angles), rotate(k, angles), v), *(where.into(q, k, v) for _, where in branches)]
        own_and_others = (_beside([part.astype(v.dtype) for part in parts]) for parts in zip(*heads, strict=True))
        seen, *others = _apart(locally(attention, lead=x.ndim - 3)(*own_and_others), len(heads))
        out = self.out(rearrange(seen, "... h e -> ... (h e)"))
        for (to_out, where), other in zip(branches, others, strict=True):
            out = out + to_out(rearrange(where.back(other), "... h e -> ... (h e)"))
        return out


def _beside(parts: Sequence[Float[Array, "*lead h e"]]) -> Float[Array, "*lead h*n e"]:
    """Heads beside those with the same number, so that a mesh that cuts heads moves none."""
    return parts[0] if len(parts) == 1 else rearrange(parts, "n ... h e -> ... (h n) e")


def _apart(x: Float[Array, "*lead h*n e"], parts: int) -> Sequence[Float[Array, "*lead h e"]]:
    """What `_beside` joined."""
    return [x] if parts == 1 else list(rearrange(x, "... (h n) e -> n ... h e", n=parts))


class ProjectiveOut(nnx.Linear):
    """The output map of a branch of self-attention with projective positions (`nn/projective.py`); zero at first.

    The branch takes the block's own queries, keys and values, after the norm and before the rotation, so that it begins with
    what a trained base attends to. It costs d^2 parameters a block: 71M on Wan's 1.3B and 1.05B on its 14B. Projections of its
    own would make that 4 d^2, 283M and 4.2B, most of which would train only once the output map has left zero. A token of
    a clip of n tokens takes 4 n d + 2 d^2 FLOPs more in a block of 4 n d + 8 d^2 + 4 d mlp_width: its attention is doubled.
    """

    layout: ClassVar[dict[str, P]] = {"kernel": P(TENSOR, FSDP), "bias": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        super().__init__(width, width, dtype=dtype, kernel_init=zeros, rngs=rngs, dot_general=dot)


class CrossAttention(SelfAttention):
    """Tokens look at those of a condition; padded positions of a text take part, as Wan was trained."""

    layout: ClassVar[dict[str, P]] = SelfAttention.layout | {"norm.scale": P(), "norm.bias": P()}
    group: ClassVar[str] = "base"

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(width, heads, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*lead f s d"], tokens: Float[Array, "*lead n d"], attention: Callable
    ) -> jax.Array:
        frames = x.shape[-3]
        q, k, v = self.project(rearrange(self.norm(x), "... f s d -> ... (f s) d"), tokens)
        seen = locally(attention, lead=x.ndim - 3)(q.astype(v.dtype), k.astype(v.dtype), v)
        out = self.out(rearrange(seen, "... h e -> ... (h e)"))
        return rearrange(out, "... (f s) d -> ... f s d", f=frames)


class Block(nnx.Module):
    """One transformer block over clips `[..., f, s, d]`; `attention` decides which tokens see each other."""

    layout: ClassVar[dict[str, P]] = {
        "modulation": P(),
        "mlp.in_.kernel": P(FSDP, TENSOR),
        "mlp.in_.bias": P(TENSOR),
        "mlp.out.kernel": P(TENSOR, FSDP),
        "mlp.out.bias": P(),
    }

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        cross: Sequence[str] = (),
        pose: Sequence[str] = (),
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        # Wan's table is small noise; its two gates start at 1 here, so that a fresh block already passes what it computes.
        table = jax.random.normal(rngs.params(), (6, width)) / width**0.5
        self.modulation = nnx.Param(table.at[jnp.array(GATES)].add(1.0))
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, mlp_width, width, dtype=dtype, rngs=rngs)
        self.cross = nnx.Dict({name: CrossAttention(width, heads, dtype=dtype, rngs=rngs) for name in cross})
        self.pose = nnx.Dict({name: ProjectiveOut(width, dtype=dtype, rngs=rngs) for name in pose})

    def __call__(
        self,
        x: Float[Array, "*lead f s d"],
        six: Float[Array, "*lead f 6 d"],
        angles: Float[Array, "f s e/2"],
        cross: Mapping[str, Float[Array, "*lead n d"]] = {},
        poses: Mapping[str, Projective] = {},
        attention: Callable = clip_attention,
        cross_attention: Callable = cross_attention,
    ) -> Float[Array, "*lead f s d"]:
        """`cross` holds the tokens of each condition with a cross-attention, by name, `poses` what each with a pose says."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = rearrange(
            six + self.modulation[...], "... six d -> six ... d"
        )
        branches = [(self.pose[name], where) for name, where in poses.items()]
        x = x + gate_1[..., None, :] * self.attention(modulate(x, shift_1, scale_1), angles, attention, branches)
        for name, tokens in cross.items():
            x = x + self.cross[name](x, tokens, cross_attention)
        return x + gate_2[..., None, :] * self.mlp(modulate(x, shift_2, scale_2))
