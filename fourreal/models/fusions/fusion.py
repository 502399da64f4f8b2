"""What a fusion is: how the view axis and the time axis of a grid meet, layer by layer.

    shared = prepare(run)
    carry = start(x, run)
    for every layer:  carry, seen = layer(carry, block, sync, run)
    heads = finish(carry, run)

A fusion is one file here, or in another package: a frozen dataclass with `kind`. All use the base's own blocks; what a fusion
adds are the layers that `make` returns, one for every block, and the projection of sigma that modulates them.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from fourreal.grid import Cells
from fourreal.nn.projective import Projective
from fourreal.parallel.activations import existing, swap_view_time
from fourreal.serialize import Kind

if TYPE_CHECKING:
    from fourreal.models.block import Block
    from fourreal.models.video_dit import VideoDiT

Carry = Any


class Probe(NamedTuple):
    """What looks into a model as it runs, or changes what its streams tell each other."""

    exchange: Callable[[Any, Array, str], Any] | None = None
    """`(message, layer, stream) -> message`: of every message before it leaves the stream named view or time; `layer` is a
    traced number. A message is an array, or the (keys, values) of a fused layer"""
    observe: Callable[[dict[str, Array]], Any] | None = None
    """of the streams after every layer, by name, each `[b v t s d]`; a model's `heads` returns what it gives, stacked"""


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of a model, as its fusion sees it. On a mesh, `v` may be filled up, see `parallel/activations.py`."""

    base: "VideoDiT"
    temb: Float[Array, "b v t d"]
    """vector of the noise level of every cell"""
    six: Float[Array, "b v t 6 d"]
    """modulation of every cell, without a context"""
    cells: Cells
    size: tuple[int, int]
    """height and width of a frame"""
    cross: dict[str, Float[Array, "b n d"]]
    """tokens of the conditions that have a cross-attention, by name"""
    shift_scale: Float[Array, "b v t 2 2 d"] | None
    """modulation of the sync layers by sigma, where the fusion has some"""
    probe: Probe
    readout: str = "mean"
    """the only stream whose head is wanted, or mean: all"""
    shared: Any = None
    """what the fusion prepared for all layers"""
    layer: Any = None
    """number of the layer, where the probe asks for it"""
    poses: dict[str, Projective] = dataclasses.field(default_factory=dict)
    """what the cells' poses say to attention, by the condition's name"""

    def to_view(self, x: Shaped[Array, "b v t *rest"]) -> Shaped[Array, "b t v *rest"]:
        """From the layout of the time stream, and this object's, to that of the view stream."""
        return swap_view_time(x, len(self.cells.views))

    def to_time(self, x: Shaped[Array, "b t v *rest"]) -> Shaped[Array, "b v t *rest"]:
        """From the layout of the view stream to that of the time stream."""
        return swap_view_time(x, len(self.cells.times))

    def send(self, message: Any, stream: str) -> Any:
        """The one way out of a stream: a message `[b t v ...]` of the view or `[b v t ...]` of the time stream, moved across.

        On a mesh this is an all-to-all.
        """
        return jax.tree.map(self.to_time if stream == "view" else self.to_view, self.changed(message, stream))

    def changed(self, message: Any, stream: str) -> Any:
        """A message as the probe lets it through."""
        return message if self.probe.exchange is None else self.probe.exchange(message, self.layer, stream)

    def added(self, x: Array, y: Array, stream: str) -> Array:
        """y, a block's output for x, where the message is what the block adds."""
        return y if self.probe.exchange is None else x + self.changed(y - x, stream)

    def clip_block(
        self, six: Array, positions: Any, arrange: Callable[[Array], Array] = lambda x: x
    ) -> Callable[["Block", Array], Array]:
        """The base's block as a function of its parameters and clips `[..., f, s, d]` at such positions.

        `arrange` brings what belongs to cells, `six` and the poses, from `[b v t ...]` to the axes of the clips.
        """
        angles, six = self.base.angles(positions, self.size), arrange(six)
        poses = {name: pose.arranged(arrange) for name, pose in self.poses.items()}
        return lambda block, x: self.base.run_block(block, x, six, angles, self.cross, poses)

    def observed(self, **streams: Array) -> Any:
        """What the probe makes of the streams after a layer."""
        if self.probe.observe is None:
            return None
        return self.probe.observe({name: existing(x, len(self.cells.views)) for name, x in streams.items()})


@dataclasses.dataclass(frozen=True)
class Fusion(Kind):
    """A kind of fusion."""

    family: ClassVar[str] = "fusion"
    readouts: ClassVar[tuple[str, ...]] = ("mean",)
    """which streams' heads can be the output: mean, and the names of several streams"""
    lead: ClassVar[int] = 2
    """leading axes of a grid that a mesh cuts: 2, examples and views or times; 1, examples alone"""
    numbered: ClassVar[bool] = False
    """whether a layer has to know its number"""

    def make(self, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module | None:
        """The layer that follows every block, None for none; `GridDiT` stacks them."""
        return None

    def prepare(self, run: Run) -> Any:
        """What all layers share, computed once."""
        return None

    def start(self, x: Float[Array, "b v t s d"], run: Run) -> Carry:
        """What goes through the layers, from the tokens of a grid."""
        raise NotImplementedError

    def layer(self, carry: Carry, block: "Block", sync: Any, run: Run) -> tuple[Carry, Any]:
        """After one block and its sync; and what `run.observed` says of the streams."""
        raise NotImplementedError

    def finish(self, carry: Carry, run: Run) -> dict[str, Float[Array, "b v t s k"]]:
        """The head of every stream that `run.readout` wants, by its name."""
        raise NotImplementedError
