"""`sequential`: one stream; in every layer the block over views, then the same block over times."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from fourreal.models.fusions.fusion import Run
from fourreal.models.fusions.one_stream import OneStream
from fourreal.models.fusions.sync import TIME, VIEW
from fourreal.parallel.activations import place_tokens


@dataclasses.dataclass(frozen=True)
class Sequential(OneStream):
    """The two axes in turns. What crosses is what either axis' block adds to the stream that the other goes on from."""

    kind = "sequential"

    def prepare(self, run: Run) -> tuple[Callable, Callable]:
        context = run.base.context
        return (
            run.clip_block(context(run.six, "freeze_time"), run.cells.views, run.to_view),
            run.clip_block(context(run.six, "dynamic"), run.cells.times),
        )

    def layer(self, carry: Float[Array, "b v t s d"], block: Any, sync: Any, run: Run) -> tuple[Array, Any]:
        over_views, over_times = run.shared
        by_time = run.to_view(carry)
        y = run.to_time(run.added(by_time, over_views(block, by_time), "view"))
        x = self.add(sync, carry, y, run, VIEW)
        x = place_tokens(self.add(sync, x, run.added(x, over_times(block, x), "time"), run, TIME))
        return x, run.observed(stream=x)
