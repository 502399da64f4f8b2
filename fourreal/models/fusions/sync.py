"""The linear map of a synchronization layer, modulated by sigma (4Real-Video, section 3).

    ModLinear(z; sigma) = ((1 + scale) z + shift) W + bias,    (shift, scale) = table + Linear(SiLU(temb(sigma)))

z = [y_v, y_t] are both streams; what moves between them is not a stream but what it adds to the other: remat then has nothing
to move again, and it is in the matmuls' precision. W, bias and the projection start at zero, so a fresh layer is the fixed mix
of its fusion. Mixing is elementwise in fp32: a residual stream that goes through a bf16 matmul every layer drifts.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from fourreal.nn.cpu import dot
from fourreal.nn.linear import linear
from fourreal.parallel.layout import FSDP, TENSOR

VIEW, TIME = 0, 1  # the two streams in the parameters' stream axes


class SigmaProjection(nnx.Module):
    """Shift and scale of both streams' parts of z from sigma, shared by all layers; zero-initialised."""

    layout: ClassVar[dict[str, P]] = {"linear.kernel": P(FSDP, None), "linear.bias": P()}
    group: ClassVar[str] = "sync"

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.linear = linear(width, 4 * width, dtype=jnp.float32, rngs=rngs, init=nnx.initializers.zeros)

    def __call__(self, temb: Float[Array, "b v t d"]) -> Float[Array, "b v t 2 2 d"]:
        out = self.linear(jax.nn.silu(temb))
        return rearrange(out, "... (kind stream d) -> ... kind stream d", kind=2, stream=2)  # kind: shift, scale


class ModLinear(nnx.Module):
    """The sigma-modulated linear map from both streams to `outputs` ones; axes (from stream, d, to output, d)."""

    layout: ClassVar[dict[str, P]] = {"kernel": P(None, FSDP, None, TENSOR), "bias": P(), "modulation": P()}
    group: ClassVar[str] = "sync"
    cast: ClassVar[tuple[str, ...]] = ("kernel",)

    def __init__(self, width: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del rngs  # all zeros
        self.kernel = nnx.Param(jnp.zeros((2, width, outputs, width)))
        self.bias = nnx.Param(jnp.zeros((outputs, width)))
        self.modulation = nnx.Param(jnp.zeros((2, 2, width)))
        self.dtype = dtype

    def __call__(
        self,
        stream: int,
        y: Float[Array, "*cells s d"],
        shift_scale: Float[Array, "*cells 2 2 d"],
        outputs: Sequence[int] = (VIEW, TIME),
    ) -> list[Float[Array, "*cells s d"]]:
        """What a stream adds to each of some outputs, in `dtype` and without the bias."""
        shift, scale = rearrange(shift_scale[..., stream, :] + self.modulation[:, stream], "... kind d -> kind ... 1 d")
        z = (y * (1 + scale) + shift).astype(self.dtype)
        return [dot(z, self.kernel[stream, :, output].astype(self.dtype)) for output in outputs]
