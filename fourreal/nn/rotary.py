"""Rotary embedding over time, y and x (Wan 2.1): pairs of a head's numbers turn by angles that grow with the position."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from fourreal.nn.low_rank import DOWN

T = TypeVar("T")


def rotary_angles(
    frame: Int[np.ndarray, "f"] | np.ndarray, height: int, width: int, head_size: int
) -> Float[np.ndarray, "f s e/2"]:
    """Angles of the 3-axis rotary embedding for the tokens of frames at positions `frame`, y and x counted in patches.

    Wan splits a head into time, y and x with 2 (e // 6) numbers each for y and x and the rest for time. Computed on the host
    in fp64, since positions are static.
    """
    space = 2 * (head_size // 6)
    sizes = (head_size - 2 * space, space, space)
    frequencies = [1e4 ** (-np.arange(0, size, 2) / size) for size in sizes]
    f, y, x = np.meshgrid(frame, np.arange(height), np.arange(width), indexing="ij")
    angles = np.concatenate([p[..., None] * w for p, w in zip((f, y, x), frequencies, strict=True)], axis=-1)
    return rearrange(angles, "f h w e -> f (h w) e").astype(np.float32)


def rotate(x: Float[Array, "*lead f s h e"], angles: Float[np.ndarray, "*f s e/2"]) -> Float[Array, "*lead f s h e"]:
    """Turns each pair (i, i + e/2) of a head by its angle, in fp32; `pairs_apart` brings Wan's neighbours there."""
    cos, sin = (np.tile(trig(angles), 2)[..., None, :] for trig in (np.cos, np.sin))
    x = x.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def pairs_apart(module: T, heads: int) -> T:
    """A map to queries or keys, or their norm, with a head's even outputs first, then its odd ones.

    Their products stay, and `rotate` reads whole vectors instead of every other number: a step of Wan's 1.3B, planned for a
    v5e, moves 1.32 instead of 1.59 TiB through a chip's memory. What a low-rank addition reads with has no outputs and stays.
    """

    def apart(path: tuple, leaf: jax.Array) -> jax.Array:
        if DOWN in jax.tree_util.keystr(path):
            return leaf
        return rearrange(leaf, "... (h half pair) -> ... (h pair half)", h=heads, pair=2)

    return jax.tree_util.tree_map_with_path(apart, module)
