"""Synchronization layers: where the view stream and the time stream exchange information (4Real-Video, section 3).

The time stream is `[b v t s d]`, the view stream `[b t v s d]`; a transpose between them is all that is exchanged, on a
mesh an all-to-all each way. What moves is not a stream but what it adds to the other: remat then has nothing to move again,
and with a = 0 it is in the matmuls' precision. With y the outputs of a block and z = [y_v, y_t]:

    ModLinear(z; sigma) = ((1 + scale) z + shift) W + bias,    (shift, scale) = table + Linear(SiLU(temb(sigma)))
    soft   x_v = y_v + a (y_t - y_v) + dv      x_t = y_t + a (y_v - y_t) + dt      (dv, dt) = ModLinear(z; sigma)
    hard   x   = w_v y_v + w_t y_t + ModLinear(z; sigma)                           both streams go on from x

W, bias and the projection start at zero, so a fresh layer is its fixed mix: a = 0 (`zero`: each stream is the base), a = 1/2
(`consensus`), (w_v, w_t) = (1/2, 1/2) (`half`, the paper's), (0, 1) (`time`), (1, 0) (`view`). Mixing is elementwise in
fp32: a residual stream that goes through a bf16 matmul every layer drifts.

One stream has nothing to synchronize. Its control with as many parameters as soft's sync (`matched`) adds the same
ModLinear to a block's output y, with z = [x, y], x the block's input.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from fourreal.models import layers
from fourreal.parallel.activations import swap_view_time

SOFT_INITS = {"zero": 0.0, "consensus": 0.5}
HARD_INITS = {"half": (0.5, 0.5), "time": (0.0, 1.0), "view": (1.0, 0.0)}  # (w_v, w_t)
VIEW, TIME = 0, 1  # the two streams in the parameters' stream axes


class SigmaProjection(nnx.Module):
    """Shift and scale of both streams' parts of z from sigma, shared by all layers; zero-initialised."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.linear = layers.linear(width, 4 * width, dtype=jnp.float32, rngs=rngs, init=nnx.initializers.zeros)

    def __call__(self, temb: Float[Array, "b v t d"]) -> Float[Array, "b v t 2 2 d"]:
        out = self.linear(jax.nn.silu(temb))
        return rearrange(out, "... (kind stream d) -> ... kind stream d", kind=2, stream=2)  # kind: shift, scale


class ModLinear(nnx.Module):
    """The sigma-modulated linear map from both streams to `outputs` ones; axes (from stream, d, to output, d)."""

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
        return [layers.dot(z, self.kernel[stream, :, output].astype(self.dtype)) for output in outputs]


class SoftSync(nnx.Module):
    """Both streams stay, each corrected from both."""

    def __init__(self, width: int, init: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.pull = SOFT_INITS[init]
        self.mod_linear = ModLinear(width, 2, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        y_v: Float[Array, "b t v s d"],
        y_t: Float[Array, "b v t s d"],
        shift_scale_v: Float[Array, "b t v 2 2 d"],
        shift_scale_t: Float[Array, "b v t 2 2 d"],
    ) -> tuple[Float[Array, "b t v s d"], Float[Array, "b v t s d"]]:
        own_v, to_time = self.mod_linear(VIEW, y_v, shift_scale_v)
        to_view, own_t = self.mod_linear(TIME, y_t, shift_scale_t)
        if self.pull:  # no compiler drops a product with 0: it might be with infinity
            to_view, to_time = to_view + self.pull * y_t, to_time + self.pull * y_v
            y_v, y_t = (1 - self.pull) * y_v, (1 - self.pull) * y_t
        bias = self.mod_linear.bias
        x_v = y_v + own_v + swap_view_time(to_view) + bias[VIEW]
        x_t = y_t + own_t + swap_view_time(to_time) + bias[TIME]
        return x_v, x_t


class HardSync(nnx.Module):
    """Both streams go on from one weighted sum."""

    def __init__(self, width: int, init: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.weights = HARD_INITS[init]
        self.mod_linear = ModLinear(width, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        y_v: Float[Array, "b t v s d"],
        y_t: Float[Array, "b v t s d"],
        shift_scale_v: Float[Array, "b t v 2 2 d"],
        shift_scale_t: Float[Array, "b v t 2 2 d"],
    ) -> tuple[Float[Array, "b t v s d"], Float[Array, "b v t s d"]]:
        (of_view,) = self.mod_linear(VIEW, y_v, shift_scale_v, [0])
        (of_time,) = self.mod_linear(TIME, y_t, shift_scale_t, [0])
        x = swap_view_time(self.weights[VIEW] * y_v + of_view)
        x = x + self.weights[TIME] * y_t + of_time + self.mod_linear.bias[0]
        return swap_view_time(x), x


def make_sync(fusion: str, init: str | None, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """One synchronization layer of a kind with its initial mix; for a fusion of one stream, soft's linear map alone."""
    if fusion not in ("soft", "hard"):
        return ModLinear(width, 2, dtype=dtype, rngs=rngs)
    return (SoftSync if fusion == "soft" else HardSync)(width, init, dtype=dtype, rngs=rngs)
