"""`hard`: both streams go on from one weighted sum (4Real-Video, section 3).

    x = w_v y_v + w_t y_t + ModLinear([y_v, y_t]; sigma)

(w_v, w_t) = (1/2, 1/2) (`half`, the paper's), (0, 1) (`time`) or (1, 0) (`view`). Each stream sends its part of the sum.
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx

from fourreal.models.fusions.fusion import Run
from fourreal.models.fusions.sync import TIME, VIEW, ModLinear
from fourreal.models.fusions.two_streams import Streams, Synchronized

WEIGHTS = {"half": (0.5, 0.5), "time": (0.0, 1.0), "view": (1.0, 0.0)}  # (w_v, w_t)


class HardSync(nnx.Module):
    """The layer's parameters."""

    group: ClassVar[str] = "sync"

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.mod_linear = ModLinear(width, 1, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Hard(Synchronized):
    """Both streams become one sum."""

    sync_init: Literal["half", "time", "view"] = "half"
    """the fixed weights"""

    kind = "hard"

    def make(self, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
        return HardSync(width, dtype=dtype, rngs=rngs)

    def synchronize(self, sync: HardSync, streams: Streams, run: Run) -> Streams:
        linear, (w_v, w_t), (y_v, y_t) = sync.mod_linear, WEIGHTS[self.sync_init], streams
        (of_view,) = linear(VIEW, y_v, run.shared.shift_scale.view, [0])
        (of_time,) = linear(TIME, y_t, run.shared.shift_scale.time, [0])
        part_v, part_t = w_v * y_v + of_view, w_t * y_t + of_time + linear.bias[0]
        return Streams(part_v + run.send(part_t, "time"), run.send(part_v, "view") + part_t)
