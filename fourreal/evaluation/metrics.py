"""How far a grid is from the truth: PSNR over all, moving and static pixels. NumPy only.

    psnr(x, y; where) = 10 log10(255^2 / mse),    mse = mean over the pixels in `where` and their channels of (x - y)^2

with x and y in uint8 levels. Only unknown cells count: a given cell is returned as it came and would raise every score.
A pixel of a view *moves* if, in the truth and over all times of the grid, its maximum minus its minimum exceeds 12
levels in any channel; it then counts as moving at every time. Otherwise it is static.
"""

import math

import numpy as np
from jaxtyping import Bool, UInt8

MOVING_LEVELS = 12


def moving_mask(frames: UInt8[np.ndarray, "v t h w 3"]) -> Bool[np.ndarray, "v t h w"]:
    """True where a pixel moves: max over t - min over t > 12 levels in any channel. The same at all times."""
    spread = frames.max(axis=1, keepdims=True).astype(np.int16) - frames.min(axis=1, keepdims=True)
    return np.broadcast_to((spread > MOVING_LEVELS).any(axis=-1), frames.shape[:-1])


def psnr(
    prediction: UInt8[np.ndarray, "*axes h w 3"],
    truth: UInt8[np.ndarray, "*axes h w 3"],
    where: Bool[np.ndarray, "..."] | None = None,
) -> float:
    """PSNR in dB over the pixels chosen by `where` (broadcast against `[*axes, h, w]`; None: all of them).

    inf if they are equal, nan if `where` chooses no pixel. Raises ValueError if the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    squared = np.square(prediction.astype(np.float64) - truth).mean(axis=-1)
    if where is not None:
        squared = squared[np.broadcast_to(where, squared.shape)]
    if squared.size == 0:
        return math.nan
    mse = float(squared.mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def psnr_by_motion(
    prediction: UInt8[np.ndarray, "v t h w 3"],
    truth: UInt8[np.ndarray, "v t h w 3"],
    given: Bool[np.ndarray, "v t"],
) -> dict[str, float]:
    """PSNR in dB over the unknown cells: `all` their pixels, the `moving` and the `static` ones."""
    unknown = ~given[:, :, None, None]
    moving = moving_mask(truth)
    return {
        "all": psnr(prediction, truth, unknown),
        "moving": psnr(prediction, truth, unknown & moving),
        "static": psnr(prediction, truth, unknown & ~moving),
    }


def psnr_per_cell(
    prediction: UInt8[np.ndarray, "v t h w 3"], truth: UInt8[np.ndarray, "v t h w 3"]
) -> list[list[float]]:
    """PSNR in dB of every cell, as `[v][t]`."""
    return [[psnr(*cell) for cell in zip(*view, strict=True)] for view in zip(prediction, truth, strict=True)]
