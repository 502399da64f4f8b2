"""`soft`: both streams stay, each corrected from both (4Real-Video, section 3).

    x_v = y_v + a (y_t - y_v) + dv      x_t = y_t + a (y_v - y_t) + dt      (dv, dt) = ModLinear([y_v, y_t]; sigma)

a = 0 (`zero`: a fresh stream is the base) or 1/2 (`consensus`).
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx

from fourreal.models.fusions.fusion import Run
from fourreal.models.fusions.sync import TIME, VIEW, ModLinear
from fourreal.models.fusions.two_streams import Streams, Synchronized

PULLS = {"zero": 0.0, "consensus": 0.5}


class SoftSync(nnx.Module):
    """The layer's parameters."""

    group: ClassVar[str] = "sync"

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.mod_linear = ModLinear(width, 2, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Soft(Synchronized):
    """Both streams stay."""

    sync_init: Literal["zero", "consensus"] = "zero"
    """a at the start"""

    kind = "soft"

    def make(self, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
        return SoftSync(width, dtype=dtype, rngs=rngs)

    def synchronize(self, sync: SoftSync, streams: Streams, run: Run) -> Streams:
        linear, pull, (y_v, y_t) = sync.mod_linear, PULLS[self.sync_init], streams
        own_v, to_time = linear(VIEW, y_v, run.shared.shift_scale.view)
        to_view, own_t = linear(TIME, y_t, run.shared.shift_scale.time)
        if pull:  # no compiler drops a product with 0: it might be with infinity
            to_view, to_time = to_view + pull * y_t, to_time + pull * y_v
            y_v, y_t = (1 - pull) * y_v, (1 - pull) * y_t
        x_v = y_v + own_v + run.send(to_view, "time") + linear.bias[VIEW]
        x_t = y_t + own_t + run.send(to_time, "view") + linear.bias[TIME]
        return Streams(x_v, x_t)
