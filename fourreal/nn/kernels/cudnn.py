"""cuDNN's flash attention, for GPUs: it scales the logits itself, and its statistics are the log-sum-exp."""

import inspect
from typing import Any

import jax.numpy as jnp
from einops import rearrange

LARGEST_HEAD = 128


def lack(platform: str, head_size: int, dtype: Any) -> str:
    """Why devices of a platform cannot run it for a model, or nothing."""
    dtype = jnp.dtype(dtype).name
    if platform not in ("gpu", "cuda"):
        return f"cudnn needs a GPU and the devices are {platform}"
    if dtype not in ("bfloat16", "float16"):
        return f"cudnn needs bfloat16 or float16 and the model's dtype is {dtype}"
    if head_size % 8 or head_size > LARGEST_HEAD:
        return f"cudnn needs a head size that is a multiple of 8 up to {LARGEST_HEAD} and it is {head_size}"
    return ""


def forward(q, k, v, kernel, with_lse):
    """Output `[b q h e]` and log-sum-exp `[b q h 1]`, or None for it where it is not wanted."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    scale = q.shape[-1] ** -0.5
    result = cudnn.dot_product_attention(q, k, v, scale=scale, qkv_layout="BTNH", return_residual=with_lse)
    return (result[0], rearrange(result[1], "b h q -> b q h 1")) if with_lse else (result, None)


def backward(q, k, v, out, lse, do, kernel):
    """Gradients of q, k and v."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    none = jnp.zeros(0, q.dtype)  # bias, lengths, offsets, page tables
    settings = {"scale": q.shape[-1] ** -0.5, "seed": 42, "dropout_rate": 0.0, "variadic_args": (False, False)}
    settings |= {"mask_type": cudnn.MaskType.NO_MASK, "layout": cudnn.AttentionLayout.BTNH.value}
    if "score_mod" in inspect.signature(cudnn._dot_product_attention_bwd_rule).parameters:  # newer than jax 0.10
        settings["score_mod"] = None
    statistics = rearrange(lse, "b q h 1 -> b h q")
    return cudnn._dot_product_attention_bwd_p_wrapper.bind(
        q, k, v, *[none] * 7, statistics, out, do, **settings, sliding_window_length=None
    )
