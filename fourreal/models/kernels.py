"""The attention kernels, and which of them a run uses: XLA's own (on CPUs in parts that stay in the cache), cuDNN's flash
attention, splash attention of Pallas for TPUs.

    forward    o = softmax(q k^T / sqrt(e)) v,   l = log sum_k e^(q k^T / sqrt(e))
    backward   p = e^(q k^T / sqrt(e) - l),   ds = p (do v^T - sum_e(do o)) / sqrt(e)
               dv = p^T do,   dq = ds k,   dk = ds^T q                                    (FlashAttention-2, algorithms 1 and 2)

All take `[*lead, tokens, heads, e]` with equal leading axes. The backward believes the o and l that it is given: with those of
a softmax over several sets of keys it returns each set's share of that softmax's gradient, so that shares add up. jax's public
functions have no such backward, so cuDNN's and splash attention's come from its inner modules, and only here.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import einops
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

Implementation = Literal["xla", "chunked", "cudnn", "splash"]
WRITTEN_OUT = 8  # parts of chunked, at most; more run in a loop
LANES = 128  # of a TPU's vector unit: splash attention's blocks are multiples
LARGEST_CUDNN_HEAD = 128


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
                raise ValueError(f"blocks.{field.name} is {getattr(self, field.name)}: give a multiple of {LANES}")


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How attention is computed."""

    kernel: Literal["auto", "xla", "chunked", "cudnn", "splash"] = "auto"
    """auto: cudnn on GPUs (bfloat16, head size a multiple of 8 up to 128), splash on TPUs, chunked on CPUs, else xla; or one of
    these by name"""
    blocks: SplashBlocks = SplashBlocks()
    """block sizes of splash attention; not used by the others"""

    def __post_init__(self):
        if self.kernel != "auto" and self.kernel not in get_args(Implementation):
            raise ValueError(f"kernel '{self.kernel}': expected one of auto, {', '.join(get_args(Implementation))}")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An attention kernel, as set-up resolved it; hashable, so that it can be a static argument."""

    name: Implementation = "xla"
    """whose implementation"""
    blocks: SplashBlocks = SplashBlocks()
    """block sizes of splash attention"""
    cache: int = 2**21
    """bytes of logits that chunked computes at once"""
    interpret: bool = False
    """run splash attention's program without a TPU, slowly, for tests"""
    reason: str = dataclasses.field(default="", compare=False)
    """why it is not the platform's own kernel"""

    def __str__(self) -> str:
        """The line that set-up prints."""
        return f"attention: {self.name}" + (f" ({self.reason})" if self.reason else "")


XLA = Kernel()


def resolve_kernel(config: AttentionConfig, platform: str, head_size: int, dtype: Any) -> Kernel:
    """The kernel for devices of `platform` (cpu, gpu, tpu), a head size and the precision of the matmuls.

    `platform` is that of the mesh's devices, which may be a topology that is only compiled for. Raises ValueError if the
    config names a kernel that they do not have.
    """
    if config.kernel != "auto":
        if lack := _lack(config.kernel, platform, head_size, dtype):
            raise ValueError(f"attention.kernel is '{config.kernel}', but {lack}: choose auto or xla")
        return Kernel(config.kernel, config.blocks)
    own = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash", "cpu": "chunked"}.get(platform, "xla")
    lack = _lack(own, platform, head_size, dtype)
    return Kernel("xla", reason=lack) if lack else Kernel(own, config.blocks)


def _lack(name: Implementation, platform: str, head_size: int, dtype: Any) -> str:
    """Why a kernel cannot be used, or nothing."""
    dtype = jnp.dtype(dtype).name
    if name == "cudnn":
        if platform not in ("gpu", "cuda"):
            return f"cudnn needs a GPU and the devices are {platform}"
        if dtype not in ("bfloat16", "float16"):
            return f"cudnn needs bfloat16 or float16 and the model's dtype is {dtype}"
        if head_size % 8 or head_size > LARGEST_CUDNN_HEAD:
            return f"cudnn needs a head size that is a multiple of 8 up to {LARGEST_CUDNN_HEAD} and it is {head_size}"
    if name == "splash":
        if platform != "tpu":
            return f"splash needs a TPU and the devices are {platform}"
        if dtype not in ("bfloat16", "float32"):
            return f"splash needs bfloat16 or float32 and the model's dtype is {dtype}"
    return ""


def plain(q: Float[Array, "*lead q h e"], k: Float[Array, "*lead k h e"], kernel: Kernel) -> bool:
    """Whether XLA's own program runs, which jax differentiates: by name, or where parts of so few logits would gain nothing."""
    logits = 4 * q.size // q.shape[-1] * k.shape[-3]
    return kernel.name == "xla" or (kernel.name == "chunked" and logits <= 2 * kernel.cache)


def forward(
    q: Float[Array, "*lead q h e"],
    k: Float[Array, "*lead k h e"],
    v: Float[Array, "*lead k h e"],
    kernel: Kernel = XLA,
    with_lse: bool = True,
) -> tuple[Float[Array, "*lead q h e"], Float[Array, "*lead q h 1"] | None]:
    """Attention and the log-sum-exp of its logits (fp32), which cudnn and splash save the work for if it is not wanted."""
    if plain(q, k, kernel):
        return _xla_forward(q, k, v)
    run = {"chunked": _chunked_forward, "cudnn": _cudnn_forward, "splash": _splash_forward}[kernel.name]
    (q, k, v), lead = _one_batch(q, k, v)
    return tuple(None if x is None else _unpack(x, lead) for x in run(q, k, v, kernel, with_lse))


def backward(
    q: Float[Array, "*lead q h e"],
    k: Float[Array, "*lead k h e"],
    v: Float[Array, "*lead k h e"],
    out: Float[Array, "*lead q h e"],
    lse: Float[Array, "*lead q h 1"],
    do: Float[Array, "*lead q h e"],
    kernel: Kernel = XLA,
) -> tuple[Float[Array, "*lead q h e"], Float[Array, "*lead k h e"], Float[Array, "*lead k h e"]]:
    """Gradients of q, k and v from that of the output; `out` and `lse` may be those of more keys than `k`."""
    if plain(q, k, kernel):
        return _xla_backward(q, k, v, out, lse, do)
    run = {"chunked": _chunked_backward, "cudnn": _cudnn_backward, "splash": _splash_backward}[kernel.name]
    arrays, lead = _one_batch(q, k, v, out, lse, do)
    return tuple(_unpack(x, lead) for x in run(*arrays, kernel))


def _one_batch(*arrays: Float[Array, "*lead s h e"]) -> tuple[list[Float[Array, "b s h e"]], list]:
    """The arrays with their leading axes, which are equal, as one, and what `_unpack` needs to undo it."""
    packed = [einops.pack([x], "* s h e") for x in arrays]
    return [x for x, _ in packed], packed[0][1]


def _unpack(x: Float[Array, "b s h e"], lead: list) -> Float[Array, "*lead s h e"]:
    return einops.unpack(x, lead, "* s h e")[0]


def _product(do, out) -> jax.Array:
    return jnp.sum(do.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)


_matmul = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


# XLA. Logits and softmax are fp32; `attention.py` says why the forward is laid out so.


def _xla_logits(q: jax.Array, k: jax.Array) -> Float[Array, "*lead h q k"]:
    return _matmul("...qhe,...khe->...hqk", q * q.shape[-1] ** -0.5, k)


def _average(
    logits: Float[Array, "*lead h q k"], v: Float[Array, "*lead h k e"]
) -> tuple[Float[Array, "*lead h q e"], Float[Array, "*lead h q 1"]]:
    """softmax(logits) v and the log-sum-exp."""
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _matmul("...qk,...ke->...qe", weights.astype(v.dtype), v) / total
    return out.astype(v.dtype), jnp.log(total) + peak


def _xla_forward(q, k, v):
    return tuple(jnp.swapaxes(x, -3, -2) for x in _average(_xla_logits(q, k), jnp.swapaxes(v, -3, -2)))


def _xla_backward(q, k, v, out, lse, do):
    weights = jnp.exp(_xla_logits(q, k) - jnp.swapaxes(lse, -3, -2))
    from_values = _matmul("...qhe,...khe->...hqk", do, v)
    logits = weights * (from_values - jnp.swapaxes(_product(do, out), -3, -2)) * q.shape[-1] ** -0.5
    weights, logits = weights.astype(v.dtype), logits.astype(v.dtype)
    dq = _matmul("...hqk,...khe->...qhe", logits, k)
    dk = _matmul("...hqk,...qhe->...khe", logits, q)
    dv = _matmul("...hqk,...qhe->...khe", weights, do)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


# Chunked: the same for a few sequences at a time, so that their logits stay in a CPU's cache. Heads come before tokens, and are
# moved there for all parts at once, by what computes them. Backward has keys before queries: a product with the transpose of
# what was just computed is slow there.


def _chunked_forward(q, k, v, kernel, with_lse):
    def part(q, k, v):
        return _average(_matmul("...qe,...ke->...qk", q * q.shape[-1] ** -0.5, k), v)

    return tuple(jnp.swapaxes(x, 1, 2) for x in _by_parts(part, (q, k, v), kernel))


def _chunked_backward(q, k, v, out, lse, do, kernel):
    def part(q, k, v, lse, product, do):
        lse, product = (jnp.swapaxes(x, -1, -2) for x in (lse, product))
        scale = q.shape[-1] ** -0.5
        q, scaled_k = q * scale, k * scale
        weights = jnp.exp(_matmul("...ke,...qe->...kq", k, q) - lse)
        logits = weights * (_matmul("...ke,...qe->...kq", v, do) - product)
        weights, logits = weights.astype(v.dtype), logits.astype(v.dtype)
        dq = _matmul("...ek,...kq->...eq", jnp.swapaxes(scaled_k, -1, -2), logits)
        dk = _matmul("...kq,...qe->...ke", logits, q)
        return dq.astype(q.dtype), dk.astype(k.dtype), _matmul("...kq,...qe->...ke", weights, do).astype(v.dtype)

    dq, dk, dv = _by_parts(part, (q, k, v, lse, _product(do, out), do), kernel)
    return rearrange(dq, "b h e q -> b q h e"), *(jnp.swapaxes(x, 1, 2) for x in (dk, dv))


def _by_parts(function: Callable, arrays: tuple[Float[Array, "b s h e"], ...], kernel: Kernel):
    """A function of `[... h s e]` over the batch, as many sequences at once as the cache holds the logits of.

    Few parts are written out: XLA's CPU runtime then works on several at once, and no core waits at the end of each product.
    On two cores a training step of `configs/nano.py` is 7 % faster.
    """
    arrays = tuple(jnp.swapaxes(x, 1, 2) for x in arrays)
    count, heads, queries, _ = arrays[0].shape
    size = max(1, kernel.cache // (4 * heads * queries * arrays[1].shape[2]))
    if count > WRITTEN_OUT * size:
        return jax.lax.map(lambda part: function(*part), arrays, batch_size=size)
    parts = [function(*(x[i : i + size] for x in arrays)) for i in range(0, count, size)]
    return jax.tree.map(lambda *part: jnp.concatenate(part), *parts)


# cuDNN: it scales the logits itself, and its statistics are the log-sum-exp.


def _cudnn_forward(q, k, v, kernel, with_lse):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    scale = q.shape[-1] ** -0.5
    result = cudnn.dot_product_attention(q, k, v, scale=scale, qkv_layout="BTNH", return_residual=with_lse)
    return (result[0], rearrange(result[1], "b h q -> b q h 1")) if with_lse else (result, None)


def _cudnn_backward(q, k, v, out, lse, do, kernel):
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


# Splash attention: heads before tokens, no scaling, whole blocks. Tokens that fill up a block are another segment.


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


def _splash_forward(q, k, v, kernel, with_lse):
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


def _splash_backward(q, k, v, out, lse, do, kernel):
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
