"""Forward splatting: pixels go where their motion takes them, and what none reaches stays a hole.

Every pixel lands on the pixel nearest to its target. Of several that land on one the one of the highest rank stays. A hole
between two filled neighbours, left and right or above and below, is a crack of a growing surface: it takes their mean.
"""

import functools

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8


@functools.lru_cache(4)
def _places(height: int, width: int) -> Int[np.ndarray, "h w 2"]:
    """Where every pixel is, (x, y)."""
    return np.dstack(np.meshgrid(np.arange(width, dtype=np.int16), np.arange(height, dtype=np.int16)))


def landing(motion: Float[np.ndarray, "h w _"]) -> tuple[Int[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
    """(x and y of the pixel nearest to p + motion(p), right and down first of its channels; whether it is in the picture)."""
    height, width = motion.shape[:2]
    nearest = np.rint(motion[..., :2]).astype(np.int16) + _places(height, width)
    x, y = nearest[..., 0], nearest[..., 1]
    return nearest, (x >= 0) & (x < width) & (y >= 0) & (y < height)


def read_at(values: Shaped[np.ndarray, "h w *c"], nearest: Int[np.ndarray, "h w 2"]) -> Shaped[np.ndarray, "h w *c"]:
    """Values at other pixels (x, y), those of the edge where one is outside."""
    import cv2

    return cv2.remap(values, nearest, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def splat(
    picture: UInt8[np.ndarray, "h w c"],
    motion: Float[np.ndarray, "h w _"],
    rank: UInt8[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"] | None = None,
) -> tuple[UInt8[np.ndarray, "h w c"], Bool[np.ndarray, "h w"]]:
    """(the valid pixels of `picture` moved by `motion` (right, down), which pixels they fill); holes are 0."""
    nearest, goes = landing(motion)
    if valid is not None:
        goes &= valid
    order = np.argsort(rank, axis=None, kind="stable")  # of equal places the last one written stays
    order = order[goes.ravel()[order]]
    target = (nearest[..., 1].astype(np.intp) * rank.shape[1] + nearest[..., 0]).ravel()[order]
    moved, filled = np.zeros(picture.shape, np.uint8), np.zeros(rank.shape, bool)
    # whole pixels are moved many times as fast as their channels
    pixels, targets = (np.ascontiguousarray(x).view(f"V{x.shape[-1]}").ravel() for x in (picture, moved))
    targets[target] = pixels[order]
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
