"""How far a grid is from the truth: PSNR, SSIM and gradient energy over all, moving and static pixels. NumPy only.

    psnr(x, y; where) = 10 log10(255^2 / mse),    mse = mean over the pixels in `where` and their channels of (x - y)^2
    ssim(x, y) = (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2))          (Wang et al. 2004)
    gradient energy = sum of the squared differences of neighbouring pixels of x / that of the truth

with x and y in uint8 levels; the means m, variances s^2 and covariance s of SSIM are over an 11 x 11 Gaussian window of
sigma 1.5, C1 = (0.01 255)^2, C2 = (0.03 255)^2, each channel for itself. Only unknown cells count: a given cell is
returned as it came and would raise every score. A pixel of a view *moves* if, in the truth and over all times of the
grid, its maximum minus its minimum exceeds 12 levels in any channel; it then counts as moving at every time. Otherwise
it is static. docs/evaluation.md says what each metric is blind to.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fourreal.errors import UserError

MOVING_LEVELS = 12
SSIM_RADIUS = 5  # pixels; the window is 2 x 5 + 1 wide
SSIM_SIGMA = 1.5


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
        raise UserError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
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
    return {name: psnr(prediction, truth, pixels) for name, pixels in _by_motion(truth, given).items()}


def ssim_map(
    prediction: UInt8[np.ndarray, "*axes h w 3"], truth: UInt8[np.ndarray, "*axes h w 3"]
) -> Float[np.ndarray, "*axes h-10 w-10"]:
    """SSIM, mean over the channels, at every pixel whose window lies inside the picture (none in one under 11 px)."""
    x, y = prediction.astype(np.float64), truth.astype(np.float64)
    mx, my = _window_mean(x), _window_mean(y)
    variances = _window_mean(x * x + y * y) - mx * mx - my * my
    covariance = _window_mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (variances + c2))
    return ssim.mean(axis=-1)


def ssim_by_motion(
    prediction: UInt8[np.ndarray, "v t h w 3"],
    truth: UInt8[np.ndarray, "v t h w 3"],
    given: Bool[np.ndarray, "v t"],
) -> dict[str, float]:
    """Mean SSIM over the unknown cells: `all` their pixels, the `moving` and the `static` ones; nan where there are none."""
    inside = np.s_[:, :, SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]
    values = np.zeros_like(truth[inside][..., 0], np.float64)
    values[~given] = ssim_map(prediction[~given], truth[~given])
    chosen = {name: values[pixels[inside]] for name, pixels in _by_motion(truth, given).items()}
    return {name: float(ssim.mean()) if ssim.size else math.nan for name, ssim in chosen.items()}


def gradient_energy_by_motion(
    prediction: UInt8[np.ndarray, "v t h w 3"],
    truth: UInt8[np.ndarray, "v t h w 3"],
    given: Bool[np.ndarray, "v t"],
) -> dict[str, float]:
    """Gradient energy relative to the truth's over the unknown cells: 1 is as sharp, less is blurred, more is noisy.

    Over `all` their pixels, the `moving` and the `static` ones; nan where the truth has no gradient.
    """
    ours, true = _gradient_energy(prediction), _gradient_energy(truth)
    pixels = {name: where[:, :, :-1, :-1] for name, where in _by_motion(truth, given).items()}
    totals = {name: (float(ours[where].sum()), float(true[where].sum())) for name, where in pixels.items()}
    return {name: mine / theirs if theirs else math.nan for name, (mine, theirs) in totals.items()}


def psnr_per_cell(
    prediction: UInt8[np.ndarray, "v t h w 3"], truth: UInt8[np.ndarray, "v t h w 3"]
) -> list[list[float]]:
    """PSNR in dB of every cell, as `[v][t]`."""
    return [[psnr(*cell) for cell in zip(*view, strict=True)] for view in zip(prediction, truth, strict=True)]


def _by_motion(truth: np.ndarray, given: np.ndarray) -> dict[str, Bool[np.ndarray, "v t h w"]]:
    """The pixels of the unknown cells: all, moving, static."""
    moving = moving_mask(truth)
    unknown = np.broadcast_to(~given[:, :, None, None], moving.shape)
    return {"all": unknown, "moving": unknown & moving, "static": unknown & ~moving}


def _window_mean(x: Float[np.ndarray, "*axes h w c"]) -> Float[np.ndarray, "*axes h-10 w-10 c"]:
    """The Gaussian-weighted mean around each pixel whose window lies inside the picture."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    height, width = (max(0, side - 2 * SSIM_RADIUS) for side in x.shape[-3:-1])
    x = sum(weight * x[..., k : k + height, :, :] for k, weight in enumerate(weights))
    return sum(weight * x[..., k : k + width, :] for k, weight in enumerate(weights))


def _gradient_energy(frames: UInt8[np.ndarray, "*axes h w 3"]) -> Float[np.ndarray, "*axes h-1 w-1"]:
    """Squared differences to the right and to the lower neighbour, summed over the channels."""
    x = frames.astype(np.float64)
    right, down = np.diff(x, axis=-2)[..., :-1, :, :], np.diff(x, axis=-3)[..., :-1, :]
    return (right**2 + down**2).sum(axis=-1)
