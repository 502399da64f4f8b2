"""`fused`: one stream, context dynamic; a token sees its own view and its own time (4Real-Video-V2, section 3).

Cell (v, t) stands at position `stride v + t`. The stride is stored with the weights, so that a grid of another length keeps
the distances that the model was trained with.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from fourreal.models.fusions.fusion import Run
from fourreal.models.fusions.one_stream import OneStream
from fourreal.models.fusions.sync import TIME, VIEW
from fourreal.nn.attention import fused_attention
from fourreal.parallel.activations import missing_clips, place_tokens


@dataclasses.dataclass(frozen=True)
class Fused(OneStream):
    """Both axes in one attention. What crosses are the keys and values that other views see."""

    stride: int | None = None
    """positions from one view to the next; none: the grid's times"""

    kind = "fused"

    def prepare(self, run: Run) -> Callable:
        views, times = len(run.cells.views), len(run.cells.times)
        positions = (self.stride or times) * run.cells.views[:, None] + run.cells.times
        angles = run.base.angles(positions.ravel(), run.size)
        angles = np.pad(rearrange(angles, "(v t) s e -> v t s e", v=views), ((0, missing_clips(views)), *[(0, 0)] * 3))
        six = run.base.context(run.six, "dynamic")

        def over_both(block: Any, x: Array, run: Run) -> Array:
            def attention(q: Array, k: Array, v: Array, **options: Any) -> Array:
                other = run.changed((k, v), "stream") if run.probe.exchange else None
                return fused_attention(q, k, v, other=other, cells=(views, times), **options)

            return run.base.run_block(block, x, six, angles, run.cross, run.poses, attention)

        return over_both

    def layer(self, carry: Float[Array, "b v t s d"], block: Any, sync: Any, run: Run) -> tuple[Array, Any]:
        y = run.shared(block, carry, run)
        x = place_tokens(self.add(sync, carry, y, run, VIEW, TIME))
        return x, run.observed(stream=x)
