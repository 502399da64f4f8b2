"""Forward splatting: pixels go where their motion takes them, and what none reaches stays a hole.

Every pixel lands on the pixel nearest to its target. Of several that land on one the one of the highest rank stays. A hole
between two filled neighbours, left and right or above and below, is a crack of a growing surface: it takes their mean.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


def landing(motion: Float[np.ndarray, "h w 2"]) -> tuple[Int[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """(the number of the pixel nearest to p + motion(p), of one at the edge where that is outside; whether it is inside)."""
    height, width = motion.shape[:2]
    step = np.rint(motion).astype(np.int32)
    x = step[..., 0] + np.arange(width, dtype=np.int32)
    y = step[..., 1] + np.arange(height, dtype=np.int32)[:, None]
    nearest = np.clip(y, 0, height - 1) * width + np.clip(x, 0, width - 1)
    return nearest, (x >= 0) & (x < width) & (y >= 0) & (y < height)


def splat(
    picture: UInt8[np.ndarray, "h w c"],
    motion: Float[np.ndarray, "h w 2"],
    rank: UInt8[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"] | None = None,
) -> tuple[UInt8[np.ndarray, "h w c"], Bool[np.ndarray, "h w"]]:
    """(the valid pixels of `picture` moved by `motion` (right, down), which pixels they fill); holes are 0."""
    target, goes = landing(motion)
    if valid is not None:
        goes = goes & valid
    order = np.argsort(rank, axis=None, kind="stable")  # of equal places the last one written stays
    order = order[goes.ravel()[order]]
    target = target.ravel()[order]
    moved, filled = np.zeros_like(picture), np.zeros(rank.shape, bool)
    moved.reshape(-1, picture.shape[-1])[target] = picture.reshape(-1, picture.shape[-1])[order]
    filled.reshape(-1)[target] = True
    for axis in (1, 0):
        _fill_cracks(moved.swapaxes(0, axis), filled.swapaxes(0, axis))
    return moved, filled


def _fill_cracks(picture: UInt8[np.ndarray, "n m c"], filled: Bool[np.ndarray, "n m"]) -> None:
    """Fills the holes that have filled pixels before and after them on the first axis, in place."""
    crack = ~filled[1:-1] & filled[:-2] & filled[2:]
    at = np.nonzero(crack)
    before, after = (picture[at[0] + step, at[1]].astype(np.uint16) for step in (0, 2))
    picture[at[0] + 1, at[1]] = (before + after) // 2
    filled[1:-1] |= crack
