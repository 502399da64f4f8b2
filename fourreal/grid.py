"""Grids: which of their cells are known, where their cells stand, and axis moves between frames and tokens.

A grid is `x[b, v, t, h, w, c]` (view, time), a cell is one frame `(v, t)`. A fixed-view video is `x[:, v0]`, a freeze-time
video is `x[:, :, t0]`; both are clips `[b, f, h, w, c]`. `given[b, v, t]` is True where a cell's clean frame is an input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float


class Known(NamedTuple):
    """What is known of a grid, in the space of the model (pixels in [-1, 1], or latents)."""

    frames: Float[Array, "b v t h w c"]
    """clean frames; only the given ones are read"""
    mask: Bool[Array, "b v t"]
    """given cells"""
    exists: Bool[Array, "b v t"] | None = None
    """cells that were recorded; a missing one is noise at sigma 1 and has no loss; None: all"""
    valid: Bool[Array, "b v t h w"] | None = None
    """pixels that hold what they should; an invalid one is noise and has no loss; None: all"""


def shown(known: Known) -> Known:
    """What conditions may be made from: the valid pixels of the given frames alone, zeros elsewhere."""
    seen = known.mask[..., None, None, None]
    if known.valid is not None:
        seen = seen & known.valid[..., None]
    return known._replace(frames=jnp.where(seen, known.frames, 0))


class Cells(NamedTuple):
    """Where the cells of a grid stand in the whole grid that it is a window of; host arrays, since shapes depend on them."""

    views: Float[np.ndarray, "v"]
    times: Float[np.ndarray, "t"]
    """may be fractional"""


def all_cells(views: int, times: int) -> Cells:
    """The cells of a whole grid."""
    return Cells(np.arange(views), np.arange(times))


def patchify(x: Float[Array, "*lead h w c"], patch: int) -> Float[Array, "*lead s k"]:
    """Cuts frames into patches in the order (c, p, p) of Wan's patch embedding; s = (h/p)(w/p), k = c p p."""
    return rearrange(x, "... (h p) (w q) c -> ... (h w) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Float[Array, "*lead s k"], patch: int, height: int) -> Float[Array, "*lead h w c"]:
    """Puts patches, in the order (p, p, c) of Wan's head, together to frames of `height` pixels."""
    return rearrange(tokens, "... (h w) (p q c) -> ... (h p) (w q) c", p=patch, q=patch, h=height // patch)


def cell_sigma(
    sigma: Float[Array, "b"] | Float[Array, "b *cells"], given: Bool[Array, "b *cells"]
) -> Float[Array, "b *cells"]:
    """The noise level of every cell: `sigma` (one an example or one a cell), and 0 where the clean frame is given."""
    sigma = jnp.asarray(sigma)
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
