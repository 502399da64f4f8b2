"""What the fusions of two streams share: a view stream of freeze-time clips and a time stream of fixed-view clips.

view stream  [b t v s d]   base block over each of the T freeze-time clips,  context freeze_time
time stream  [b v t s d]   base block over each of the V fixed-view clips,   context dynamic
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fourreal.errors import UserError
from fourreal.models.fusions.fusion import Fusion, Run
from fourreal.parallel.activations import place, place_tokens


class Streams(NamedTuple):
    """Both streams, or what belongs to either."""

    view: Float[Array, "b t v s d"]
    time: Float[Array, "b v t s d"]


class Shared(NamedTuple):
    """What all layers share."""

    over_views: Callable[[Any, Array], Array]
    over_times: Callable[[Any, Array], Array]
    shift_scale: Streams | None


class TwoStreams(Fusion):
    """Two streams; `synchronize` is what a subclass does between them."""

    readouts = ("mean", "time", "view")

    def prepare(self, run: Run) -> Shared:
        context = run.base.context
        modulation = None
        if run.shift_scale is not None:
            modulation = Streams(run.to_view(run.shift_scale), place(run.shift_scale))
        return Shared(
            run.clip_block(context(run.six, "freeze_time"), run.cells.views, run.to_view),
            run.clip_block(context(run.six, "dynamic"), run.cells.times),
            modulation,
        )

    def start(self, x: Float[Array, "b v t s d"], run: Run) -> Streams:
        return Streams(run.to_view(x), place_tokens(x))

    def layer(self, carry: Streams, block: Any, sync: Any, run: Run) -> tuple[Streams, Any]:
        shared: Shared = run.shared
        outputs = Streams(shared.over_views(block, carry.view), shared.over_times(block, carry.time))
        view, time = self.meet(sync, outputs, run)
        after = Streams(place_tokens(view), place_tokens(time))
        return after, run.observed(view=run.to_time(after.view), time=after.time) if run.probe.observe else None

    def meet(self, sync: Any, streams: Streams, run: Run) -> Streams:
        """The streams as they go on to the next layer."""
        return self.synchronize(sync, streams, run)

    def synchronize(self, sync: Any, streams: Streams, run: Run) -> Streams:
        """The streams after they exchanged what they have to tell."""
        return streams

    def finish(self, carry: Streams, run: Run) -> dict[str, Float[Array, "b v t s k"]]:
        heads = {}
        if run.readout != "time":
            heads["view"] = run.to_time(run.base.head(carry.view, run.to_view(run.temb)))
        if run.readout != "view":
            heads["time"] = run.base.head(carry.time, run.temb)
        return heads


@dataclasses.dataclass(frozen=True)
class Synchronized(TwoStreams):
    """Two streams that are synchronized after every layer, or after some."""

    every: int = dataclasses.field(default=1, kw_only=True)
    """the streams meet after every so many layers and after the last; what the other layers' sync would be rests"""

    def __post_init__(self):
        if self.every < 1:
            raise UserError(f"{self.kind}: every is {self.every}: give 1 or more layers")

    @property
    def numbered(self) -> bool:
        """A layer has to know its number."""
        return self.every > 1

    def meet(self, sync: Any, streams: Streams, run: Run) -> Streams:
        if self.every == 1:
            return super().meet(sync, streams, run)
        done = run.layer + 1
        now = (done % self.every == 0) | (done == run.base.config.depth)
        if run.probe.exchange is not None:  # what it hears must not stay inside a branch
            return jax.tree.map(functools.partial(jnp.where, now), self.synchronize(sync, streams, run), streams)
        return jax.lax.cond(now, lambda both: self.synchronize(sync, both, run), lambda both: both, streams)
