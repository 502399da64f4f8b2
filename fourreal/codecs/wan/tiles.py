"""Frames in overlapping tiles, for memory: a tile at a time, and seams blended linearly over the overlap.

    out[y] = (1 - y/e) above[y] + (y/e) below[y]      over the e rows that two neighbours share; then the same for columns

Every tile is computed as if it were a whole frame, so a pixel that is nearer to a tile's edge than the network reaches differs,
and the attention in the middle sees its tile alone. Tiles, order and weights are those of diffusers' `tiled_decode`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fourreal.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Squares of `size` latents on a side, one every `stride` latents."""

    size: int = 32
    stride: int = 24

    def __post_init__(self):
        if not 0 < self.stride <= self.size:
            raise UserError(f"tiles of {self.size} every {self.stride} latents: expected a stride from 1 to the size")


def in_tiles(
    run: Callable[[jax.Array], jax.Array],
    x: Float[Array, "b t h w c"],
    tiles: Tiles,
    unit_in: int,
    unit_out: int,
) -> Float[Array, "b u y x o"]:
    """run(x) by tiles; frames that fit one tile are run whole.

    Args:
        run: of frames of any size, here of a tile's.
        x: the frames.
        tiles: in latents.
        unit_in: pixels of x for a latent, along a side.
        unit_out: pixels of the result for a latent.
    """
    height, width = x.shape[2:4]
    size, stride = tiles.size * unit_in, tiles.stride * unit_in
    if max(height, width) <= size:
        return run(x)
    rows, columns = range(0, height, stride), range(0, width, stride)
    done = _run_by_shape(run, x, [(top, left) for top in rows for left in columns], size)
    shared, kept = (tiles.size - tiles.stride) * unit_out, tiles.stride * unit_out
    lines = []
    for top in rows:
        for left in columns:  # a tile is blended with neighbours that are blended already
            if top:
                done[top, left] = _blend(done[top - stride, left], done[top, left], shared, axis=2)
            if left:
                done[top, left] = _blend(done[top, left - stride], done[top, left], shared, axis=3)
        lines.append(jnp.concatenate([done[top, left][:, :, :kept, :kept] for left in columns], axis=3))
    return jnp.concatenate(lines, axis=2)


def _run_by_shape(
    run: Callable[[jax.Array], jax.Array], x: jax.Array, corners: list[tuple[int, int]], size: int
) -> dict[tuple[int, int], jax.Array]:
    """The results by corner; tiles of one shape are one loop, so that few programs are compiled and one tile is in memory."""
    height, width = x.shape[2:4]
    shapes = {}
    for top, left in corners:
        shapes.setdefault((min(size, height - top), min(size, width - left)), []).append((top, left))
    done = {}
    for (rows, columns), same in shapes.items():

        def one(corner: jax.Array, rows: int = rows, columns: int = columns) -> jax.Array:
            start = (0, 0, corner[0], corner[1], 0)
            return run(jax.lax.dynamic_slice(x, start, (*x.shape[:2], rows, columns, x.shape[4])))

        done |= zip(same, jax.lax.map(one, jnp.array(same)), strict=True)
    return done


def _blend(before: jax.Array, tile: jax.Array, shared: int, axis: int) -> jax.Array:
    """`tile` whose first `shared` rows (or columns) go over linearly from the last ones of `before`."""
    shared = min(shared, before.shape[axis], tile.shape[axis])
    share = jnp.expand_dims(jnp.arange(shared) / max(shared, 1), tuple(range(1, tile.ndim - axis)))
    ours, rest = jnp.split(tile, [shared], axis=axis)
    theirs = jax.lax.slice_in_dim(before, before.shape[axis] - shared, before.shape[axis], axis=axis)
    return jnp.concatenate([(1 - share) * theirs + share * ours, rest], axis=axis)
