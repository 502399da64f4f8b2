"""Which attention kernel a run uses, and running it: settings, the choice at set-up, and a forward and a backward for all.

    forward    o = softmax(q k^T / sqrt(e)) v,   l = log sum_k e^(q k^T / sqrt(e))
    backward   p = e^(q k^T / sqrt(e) - l),   ds = p (do v^T - sum_e(do o)) / sqrt(e)
               dv = p^T do,   dq = ds k,   dk = ds^T q                                    (FlashAttention-2, algorithms 1 and 2)

All take `[*lead, tokens, heads, e]` with equal leading axes. The backward believes the o and l that it is given: with those of
a softmax over several sets of keys it returns each set's share of that softmax's gradient, so that shares add up.
"""

import dataclasses
from typing import Any, Literal, get_args

import einops
from jaxtyping import Array, Float

from fourreal.errors import UserError
from fourreal.nn.kernels import chunked, cudnn, splash, xla
from fourreal.nn.kernels.splash import SplashBlocks

Implementation = Literal["xla", "chunked", "cudnn", "splash"]
BACKENDS = {"chunked": chunked, "cudnn": cudnn, "splash": splash}  # that have a backward of their own


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
            raise UserError(f"kernel '{self.kernel}': expected one of auto, {', '.join(get_args(Implementation))}")


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
            raise UserError(f"attention.kernel is '{config.kernel}', but {lack}: choose auto or xla")
        return Kernel(config.kernel, config.blocks)
    own = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash", "cpu": "chunked"}.get(platform, "xla")
    lack = _lack(own, platform, head_size, dtype)
    return Kernel("xla", reason=lack) if lack else Kernel(own, config.blocks)


def _lack(name: Implementation, platform: str, head_size: int, dtype: Any) -> str:
    """Why a kernel cannot be used, or nothing."""
    return BACKENDS[name].lack(platform, head_size, dtype) if name in ("cudnn", "splash") else ""


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
        return xla.forward(q, k, v)
    (q, k, v), lead = _one_batch(q, k, v)
    return tuple(
        None if x is None else _unpack(x, lead) for x in BACKENDS[kernel.name].forward(q, k, v, kernel, with_lse)
    )


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
        return xla.backward(q, k, v, out, lse, do)
    arrays, lead = _one_batch(q, k, v, out, lse, do)
    return tuple(_unpack(x, lead) for x in BACKENDS[kernel.name].backward(*arrays, kernel))


def _one_batch(*arrays: Float[Array, "*lead s h e"]) -> tuple[list[Float[Array, "b s h e"]], list]:
    """The arrays with their leading axes, which are equal, as one, and what `_unpack` needs to undo it."""
    packed = [einops.pack([x], "* s h e") for x in arrays]
    return [x for x, _ in packed], packed[0][1]


def _unpack(x: Float[Array, "b s h e"], lead: list) -> Float[Array, "*lead s h e"]:
    return einops.unpack(x, lead, "* s h e")[0]
