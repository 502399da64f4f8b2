"""`base`: the base alone, one stream along the longer axis of a clip: a grid of one time (freeze time) or of one view."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from einops import rearrange
from jaxtyping import Array, Float

from fourreal.errors import UserError
from fourreal.models.fusions.fusion import Fusion, Run
from fourreal.parallel.activations import place_tokens

BY_SHAPE = "by_shape"


@dataclasses.dataclass(frozen=True)
class Base(Fusion):
    """The base alone, on grids of one view or one time."""

    context: str | None = BY_SHAPE
    """dynamic, freeze_time, image or none; by_shape: freeze_time for one time, dynamic for one view, image for one cell"""

    kind = "base"
    lead = 1

    def start(self, x: Float[Array, "b v t s d"], run: Run) -> Float[Array, "b f s d"]:
        if min(x.shape[1:3]) > 1:
            raise UserError(
                f"a base takes clips, and this grid has {x.shape[1]} views and {x.shape[2]} times: expected one of either"
            )
        return place_tokens(rearrange(x, "b v t s d -> b (v t) s d"), 1)

    def prepare(self, run: Run) -> Callable:
        views, times = len(run.cells.views), len(run.cells.times)
        context = self.context
        if context == BY_SHAPE:
            context = "image" if views == times == 1 else "freeze_time" if times == 1 else "dynamic"
        positions = run.cells.times if views == 1 else run.cells.views
        as_clips = functools.partial(rearrange, pattern="b v t ... -> b (v t) ...")
        return run.clip_block(run.base.context(run.six, context), positions, as_clips)

    def layer(self, carry: Float[Array, "b f s d"], block: Any, sync: Any, run: Run) -> tuple[Array, Any]:
        x = place_tokens(run.shared(block, carry), 1)
        return x, run.observed(stream=rearrange(x, "b (v t) s d -> b v t s d", v=len(run.cells.views)))

    def finish(self, carry: Float[Array, "b f s d"], run: Run) -> dict[str, Float[Array, "b v t s k"]]:
        out = rearrange(carry, "b (v t) s d -> b v t s d", v=len(run.cells.views))
        return {"stream": run.base.head(out, run.temb)}
