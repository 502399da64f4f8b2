"""Splash attention of Pallas, for TPUs: heads before tokens, no scaling, whole blocks.

Tokens that fill up a block belong to another segment, which no true token sees.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from fourreal.errors import UserError

LANES = 128  # of a TPU's vector unit: blocks are multiples


@dataclasses.dataclass(frozen=True)
class SplashBlocks:
    """Most tokens in a block of splash attention; a sequence takes the block up to this that needs the least padding."""

    q: int = 1024
    """queries, forward"""
    kv: int = 1536
    """keys and values, forward"""
    q_backward: int = 768
    """queries, backward"""
    kv_backward: int = 1536
    """keys and values, backward; there are as many partial sums of the queries' gradient as such blocks"""
    step: int = 768
    """keys and values of a block that are computed at once"""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < LANES or getattr(self, field.name) % LANES:
                raise UserError(f"blocks.{field.name} is {getattr(self, field.name)}: give a multiple of {LANES}")


def lack(platform: str, head_size: int, dtype: Any) -> str:
    """Why devices of a platform cannot run it for a model, or nothing."""
    dtype = jnp.dtype(dtype).name
    if platform != "tpu":
        return f"splash needs a TPU and the devices are {platform}"
    if dtype not in ("bfloat16", "float32"):
        return f"splash needs bfloat16 or float32 and the model's dtype is {dtype}"
    return ""


def fit_block(length: int, most: int) -> tuple[int, int]:
    """A block of at most `most` tokens and the length, filled up, that it divides."""
    if length <= most:
        return (-(-length // LANES) * LANES,) * 2
    blocks = range(most, most // 2 - 1, -LANES)
    return min(((block, -(-length // block) * block) for block in blocks), key=lambda fit: fit[1])


def fit_step(block: int, most: int) -> int:
    """The largest part of a block, at most `most` tokens, that divides it."""
    return max(step for step in range(LANES, min(block, most) + 1, LANES) if block % step == 0)


def _head_major(x: Float[Array, "b s h e"], length: int) -> Float[Array, "b h length e"]:
    x = rearrange(x, "b s h e -> b h s e")
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))


def _token_major(x: Float[Array, "b h length e"], tokens: int) -> Float[Array, "b tokens h e"]:
    return rearrange(x[:, :, :tokens], "b h s e -> b s h e")


def _segments(splash, queries: int, keys: int, filled: int):
    """What keeps queries from the keys that only fill up a block; those of the queries look at all true keys, unread."""
    if keys == filled:
        return None
    return splash.SegmentIds(jnp.zeros(queries, jnp.int32), (jnp.arange(filled) >= keys).astype(jnp.int32))


def _every_pair(splash):
    """The mask of splash attention that hides nothing and needs no tables."""
    return splash.mask_info_lib.MaskInfo(None, None, None, None, None)


def forward(q, k, v, kernel, with_lse):
    """Output `[b q h e]` and log-sum-exp `[b q h 1]`, or None for it where it is not wanted."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    queries, keys = q.shape[1], k.shape[1]
    (block_q, padded_q), (block_kv, padded_kv) = fit_block(queries, kernel.blocks.q), fit_block(keys, kernel.blocks.kv)

    def one(q, k, v):
        return splash._splash_attention_forward(
            _every_pair(splash),
            q,
            k,
            v,
            segment_ids=_segments(splash, padded_q, keys, padded_kv),
            sinks=None,
            mask_value=splash.DEFAULT_MASK_VALUE,
            is_mqa=False,
            block_sizes=splash.BlockSizes(block_q, block_kv, fit_step(block_kv, kernel.blocks.step)),
            residual_checkpoint_name=None,
            save_residuals=with_lse,
            mask_function=None,
            interpret=kernel.interpret,
        )

    scaled = q * q.shape[-1] ** -0.5
    result = jax.vmap(one)(_head_major(scaled, padded_q), _head_major(k, padded_kv), _head_major(v, padded_kv))
    out, (lse,) = result if with_lse else (result, (None,))
    return _token_major(out, queries), lse if lse is None else _token_major(lse[..., None], queries)


def backward(q, k, v, out, lse, do, kernel):
    """Gradients of q, k and v."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    queries, keys, scale = q.shape[1], k.shape[1], q.shape[-1] ** -0.5
    block_q, padded_q = fit_block(queries, kernel.blocks.q_backward)
    block_kv, padded_kv = fit_block(keys, kernel.blocks.kv_backward)
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=fit_step(block_kv, kernel.blocks.step),
        use_fused_bwd_kernel=True,
    )

    def one(q, k, v, out, lse, do):
        segments = _segments(splash, padded_q, keys, padded_kv)
        residuals = (q, k, v, segments, None, out, lse[..., 0], None, _every_pair(splash))
        _, _, _, dq, dk, dv, *_ = splash._splash_attention_bwd(
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            is_mqa=False,
            block_sizes=blocks,
            residual_checkpoint_name=None,
            mask_function=None,
            attn_logits_soft_cap=None,
            interpret=kernel.interpret,
            res=residuals,
            do=do,
        )
        return dq, dk, dv

    of_queries = [_head_major(x, padded_q) for x in (q * scale, out, lse, do)]
    of_keys = [_head_major(x, padded_kv) for x in (k, v)]
    dq, dk, dv = jax.vmap(one)(of_queries[0], *of_keys, *of_queries[1:])
    return _token_major(dq, queries) * scale, _token_major(dk, keys), _token_major(dv, keys)
