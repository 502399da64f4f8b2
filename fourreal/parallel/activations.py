"""How the activations of a model are sharded over the ambient mesh (`jax.set_mesh`), and the one move between streams.

    time stream  [b, v, t, s, d]     b over (data, fsdp), v over grid
    view stream  [b, t, v, s, d]     b over (data, fsdp), t over grid
    clips        [b, f, s, d]        b over (data, fsdp, grid)
    items        [n, ...]            n over all axes, of what needs nothing of the others: a codec's cells or views
    heads        [..., h, e]         h over tensor
    tokens       [..., s, d]         between the blocks, s over tensor where that divides it

So every clip of a stream is whole on one device, or on those of a tensor group, and attention is local. `swap_view_time` moves
tokens by an all-to-all that exchanges the cut axis. Along tensor, XLA gathers a block's tokens for its matmuls and scatters
their sums (sequence parallelism, Korthikanti et al. 2022). Where grid does not divide a stream's clips, zeros fill them up:
clips that do not exist, of which the other stream gets none. Where a batch is smaller than the mesh, the axes that do not
divide it compute the same twice. Without a mesh, everything here does nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Shaped

from fourreal.errors import UserError
from fourreal.parallel.mesh import AXES, EXAMPLE_AXES, example_axes, microbatch, share_of_examples

BATCH = EXAMPLE_AXES[2]  # axes over which the examples of grids are cut
GRID, TENSOR = "grid", "tensor"


def axis_size(*axes: str) -> int:
    """How many devices the ambient mesh has along some axes together; 1 for axes that it lacks."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in axes)


def check_grid(views: int, times: int, heads: int, lead: int = 2) -> None:
    """Raises UserError where the ambient mesh cannot cut such grids; with `lead` 1 it cuts their heads alone."""
    check_heads(heads)
    if lead == 2 and (grid := axis_size(GRID)) > (most := min(views, times)):
        raise UserError(f"mesh.grid {grid} is too many for {views} views and {times} times: give 1 to {most}")


def check_heads(heads: int) -> None:
    """Raises ValueError where the ambient mesh cannot cut so many heads."""
    if heads % axis_size(TENSOR):
        raise UserError(f"mesh.tensor {axis_size(TENSOR)} does not divide {heads} heads: give {_divisors(heads)}")


def spec(x: jax.Array, lead: int, tensor: bool = False, axes: int = 2) -> P:
    """The sharding of an array `[b, ...]`: `lead` 2 of a stream, 1 of a clip; `tensor` cuts its axis -2 if it can.

    `axes` 1: of an array without views or times, its examples where those of the others are.
    """
    cut = [example_axes(x.shape[0], lead, jax.sharding.get_abstract_mesh().shape)]
    if lead == 2 and axes > 1:  # one text for all clips of a grid has size 1 there, and not all is filled up
        cut.append(GRID if axis_size(GRID) > 1 and not missing_clips(x.shape[1]) else None)
    cut += [None] * (x.ndim - len(cut))
    if tensor and axis_size(TENSOR) > 1 and x.shape[-2] % axis_size(TENSOR) == 0:
        cut[-2] = TENSOR
    return P(*cut)


def place(x: Shaped[Array, "b *rest"], lead: int = 2, axes: int = 2, tensor: bool = False) -> Shaped[Array, "b *rest"]:
    """Constrains `x` to the sharding of a stream (`lead` 2) or a clip (1); `axes`, `tensor`: see `spec`."""
    if axis_size(*BATCH, GRID, TENSOR) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(x, lead, tensor, axes))


def place_tokens(x: Float[Array, "b *rest s d"], lead: int = 2) -> Float[Array, "b *rest s d"]:
    """Constrains a residual stream to its sharding between blocks."""
    return place(x, lead, tensor=True)


def missing_clips(clips: int) -> int:
    """How many clips fill up so many to a multiple of grid."""
    return -clips % axis_size(GRID)


def fill_up(x: Shaped[Array, "b v *rest"], axis: int = 1) -> Shaped[Array, "b filled *rest"]:
    """`x` with zeros for the missing clips along an axis."""
    missing = missing_clips(x.shape[axis])
    return jnp.pad(x, [(0, missing if each == axis else 0) for each in range(x.ndim)]) if missing else x


def existing(x: Shaped[Array, "b filled *rest"], clips: int) -> Shaped[Array, "b v *rest"]:
    """`x` without what `fill_up` added."""
    return x if x.shape[1] == clips else x[:, :clips]


def split_examples(x: Shaped[Array, "b *rest"], most: int | None, lead: int) -> Shaped[Array, "parts part *rest"]:
    """A batch in equal parts with at most `most` examples of each device; none moves to another device."""
    share = share_of_examples(len(x), lead, jax.sharding.get_abstract_mesh().shape)
    part = microbatch(share, most)
    return rearrange(x, "(devices parts part) ... -> parts (devices part) ...", devices=len(x) // share, part=part)


def swap_view_time(x: Shaped[Array, "b v t *rest"], views: int | None = None) -> Shaped[Array, "b t v *rest"]:
    """From the layout of the time stream to that of the view stream, and back: one all-to-all where grid cuts.

    The `views` that exist (times, on the way back; none: all of `x`) go over, and the times are filled up. A clip, a grid of
    one view or one time, is whole on its device. Inside a `shard_map` it takes and returns a device's share.
    """
    if axis_size(GRID) > 1 and GRID not in jax.sharding.get_abstract_mesh().manual_axes:
        if 1 in x.shape[1:3]:
            return jnp.swapaxes(x, 1, 2)
        swap, x = functools.partial(swap_view_time, views=views or x.shape[1]), fill_up(x)
        cut = spec(x, 2, tensor=x.ndim > 4)
        return jax.shard_map(swap, in_specs=cut, out_specs=cut)(x)
    if axis_size(GRID) > 1:
        x = jax.lax.all_to_all(fill_up(x, 2), GRID, split_axis=2, concat_axis=1, tiled=True)
        x = existing(x, views or x.shape[1])
    return jnp.swapaxes(x, 1, 2)


def locally(attention: Callable, lead: int) -> Callable[..., jax.Array]:
    """Runs `attention` of arrays `[..., h, e]` per device, on whole clips and some of the heads; no communication."""
    if axis_size(*BATCH, GRID, TENSOR) == 1:
        return attention

    def run(*arrays: jax.Array) -> jax.Array:
        specs = tuple(spec(x, lead, tensor=True) for x in arrays)
        return jax.shard_map(attention, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)

    return run


def spread(run: Callable[..., jax.Array], x: Shaped[Array, "n *rest"], *whole: Any) -> Shaped[Array, "n *out"]:
    """run(item, *whole) of every item of `x`, over all devices: each has an equal share and runs it one by one.

    No communication but what brings the items there; the memory is that of one item a device. Zeros fill up the last shares.
    """

    def share(x: jax.Array, *whole: Any) -> jax.Array:
        return jax.lax.map(lambda item: run(item, *whole), x)

    if (devices := axis_size(*AXES)) == 1:
        return share(x, *whole)
    filled = jnp.pad(x, [(0, -len(x) % devices), *[(0, 0)] * (x.ndim - 1)]) if len(x) % devices else x
    specs = (P(AXES), *[P()] * len(whole))
    return jax.shard_map(share, in_specs=specs, out_specs=P(AXES), check_vma=False)(filled, *whole)[: len(x)]


def _divisors(number: int) -> str:
    return " or ".join(str(n) for n in range(1, number + 1) if number % n == 0)
