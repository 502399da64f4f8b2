"""Axis moves between grids, clips and tokens, and the hint pictures of a partly given grid.

A grid is `x[b, v, t, h, w, c]` (view, time), a cell is one frame `(v, t)`. A fixed-view video is `x[:, v0]`, a freeze-time
video is `x[:, :, t0]`; both are clips `[b, f, h, w, c]`. `given[b, v, t]` is True where a cell's clean frame is an input.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from fourreal.parallel.activations import swap_view_time

CONTEXTS = ("dynamic", "freeze_time", "image")  # kinds of clips: fixed view, freeze time, a single frame
HINT_PICTURES = 2  # the nearest given frame of the same view, and of the same time


def patchify(x: Float[Array, "*lead h w c"], patch: int) -> Float[Array, "*lead s k"]:
    """Cuts frames into patches in the order (c, p, p) of Wan's patch embedding; s = (h/p)(w/p), k = c p p."""
    return rearrange(x, "... (h p) (w q) c -> ... (h w) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Float[Array, "*lead s k"], patch: int, height: int) -> Float[Array, "*lead h w c"]:
    """Puts patches, in the order (p, p, c) of Wan's head, together to frames of `height` pixels."""
    return rearrange(tokens, "... (h w) (p q c) -> ... (h p) (w q) c", p=patch, q=patch, h=height // patch)


def nearest_given(given: Bool[Array, "*lead f"]) -> tuple[Int[Array, "*lead f"], Bool[Array, "*lead 1"]]:
    """For each frame of a clip, the index of the nearest given one (the earlier of two), and whether there is any."""
    frames = given.shape[-1]
    distance = jnp.abs(jnp.arange(frames)[:, None] - jnp.arange(frames))
    distance = jnp.where(given[..., None, :], distance, frames)
    return jnp.argmin(distance, axis=-1), jnp.any(given, axis=-1, keepdims=True)


def clip_hints(clip: Float[Array, "*lead f h w c"], given: Bool[Array, "*lead f"]) -> Float[Array, "*lead f h w c+1"]:
    """The nearest given frame of the clip for each of its frames; last channel 1, all zeros where there is none."""
    index, exists = nearest_given(given)
    picture = jnp.take_along_axis(clip, index[..., None, None, None], axis=-4)
    flag = jnp.ones_like(picture[..., :1])
    return jnp.where(exists[..., None, None, None], jnp.concatenate([picture, flag], axis=-1), 0)


def grid_hints(grid: Float[Array, "b v t h w c"], given: Bool[Array, "b v t"]) -> Float[Array, "b v t 2 h w c+1"]:
    """For each cell, the nearest given frames of its own view (0) and of its own time (1); last channel 1.

    A view (or time) without a given frame borrows the pictures of the nearest one that has any; the last channel is then 0.
    """
    own_time = swap_view_time(_with_borrowed(swap_view_time(grid), swap_view_time(given)))
    return jnp.stack([_with_borrowed(grid, given), own_time], axis=3)


def _with_borrowed(clips: Float[Array, "b n f h w c"], given: Bool[Array, "b n f"]) -> Float[Array, "b n f h w c+1"]:
    """`clip_hints` of every clip; one without a given frame has the pictures of the nearest that has one, not the flag."""
    hints = clip_hints(clips, given)
    lender, _ = nearest_given(jnp.any(given, axis=-1))
    pictures = jnp.take_along_axis(hints[..., :-1], lender[..., None, None, None, None], axis=1)
    return jnp.concatenate([pictures, hints[..., -1:]], axis=-1)


def cell_sigma(
    sigma: Float[Array, "b"] | Float[Array, "b *cells"], given: Bool[Array, "b *cells"]
) -> Float[Array, "b *cells"]:
    """The noise level of every cell: `sigma` (one an example or one a cell), and 0 where the clean frame is given."""
    if sigma.ndim == 1:
        sigma = jnp.expand_dims(sigma, tuple(range(1, given.ndim)))
    return jnp.where(given, 0.0, sigma.astype(jnp.float32))


def even_cut(stored: int, wanted: int) -> np.ndarray:
    """`wanted` positions out of `stored`, from 0, at the largest stride that fits."""
    stride = 1 if wanted == 1 else (stored - 1) // (wanted - 1)
    return stride * np.arange(wanted)


def to_unit(frames: jax.Array) -> jax.Array:
    """uint8 pixels 0..255 to float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: jax.Array) -> jax.Array:
    """float pixels in [-1, 1] to uint8, rounded; values outside are clipped."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
