"""All scores of one grid, and what each of them means for the better."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fourreal.metrics.consistency import Surface, reprojection, warp_and_flicker
from fourreal.metrics.epipolar import epipolar
from fourreal.metrics.lpips import Lpips
from fourreal.metrics.pixels import gradient_energy_by_motion, psnr_by_motion, psnr_per_cell, ssim_by_motion
from fourreal.scene import Cameras

EXACT = 10 * math.log10(12 * 255**2)  # 58.9 dB, the PSNR of rounding to whole levels: more would count for nothing

Score = dict[str, Any]  # metric -> number (None where it has no pixels); cells -> PSNR as [v][t], None in given cells


@dataclass(frozen=True)
class Metric:
    """How a metric is shown and compared."""

    label: str
    better: Literal["higher", "lower", "one"]
    digits: int

    def quality(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Higher is better: the value, its negative, or minus its distance from 1 on a log scale."""
        if self.better == "one":
            return -np.abs(np.log(np.maximum(values, 1e-9)))
        return values if self.better == "higher" else -values


METRICS = {
    **{f"psnr_{name}": Metric(f"PSNR {name}", "higher", 2) for name in ("all", "moving", "static")},
    **{f"ssim_{name}": Metric(f"SSIM {name}", "higher", 3) for name in ("all", "moving", "static")},
    **{f"gradient_{name}": Metric(f"gradient {name}", "one", 2) for name in ("all", "moving", "static")},
    **{f"reprojection_{name}": Metric(f"reprojected {name}", "lower", 2) for name in ("seen", "unseen")},
    "epipolar_median": Metric("epipolar px", "lower", 2),
    "epipolar_inliers": Metric("epipolar <1px", "higher", 2),
    "epipolar_matches": Metric("epipolar matches", "higher", 1),
    "warp_all": Metric("flow warp", "lower", 2),
    "flicker_static": Metric("flicker static", "lower", 2),
    **{f"lpips_{network}": Metric(f"LPIPS {network}", "lower", 3) for network in ("alex", "vgg")},
}


def metric_of(name: str) -> Metric:
    """How a metric is shown and compared: one of METRICS, or a user's MODULE:FUNCTION[:lower]."""
    if name in METRICS:
        return METRICS[name]
    _, function, *better = name.split(":")
    return Metric(f"own {function}", "lower" if better == ["lower"] else "higher", 3)


def score_grid(
    prediction: UInt8[np.ndarray, "v t h w 3"],
    truth: UInt8[np.ndarray, "v t h w 3"],
    given: Bool[np.ndarray, "v t"],
    lpips: Mapping[str, Lpips],
    own: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = MappingProxyType({}),
    surface: Surface | None = None,
    cameras: Cameras | None = None,
) -> Score:
    """Every metric over the unknown cells; `lpips` by network, `own` a user's by name. A PSNR counts as 58.9 dB at most.

    The reprojection error needs the `surface` that the truth shows, the epipolar distance its `cameras`.
    """
    score = {f"psnr_{name}": min(value, EXACT) for name, value in psnr_by_motion(prediction, truth, given).items()}
    score |= {f"ssim_{name}": value for name, value in ssim_by_motion(prediction, truth, given).items()}
    score |= {f"gradient_{name}": value for name, value in gradient_energy_by_motion(prediction, truth, given).items()}
    if surface is not None:
        score |= {f"reprojection_{name}": e for name, e in reprojection(prediction, given, surface).items()}
    if cameras is not None:
        score |= {f"epipolar_{name}": e for name, e in epipolar(prediction, given, cameras.K, cameras.c2w).items()}
    score["warp_all"], score["flicker_static"] = warp_and_flicker(prediction, truth, given)
    for network, distance in lpips.items():
        score[f"lpips_{network}"] = float(distance(prediction[~given], truth[~given]).mean())
    score |= {name: float(metric(prediction, truth, given)) for name, metric in own.items()}
    cells = np.where(given, np.nan, np.minimum(psnr_per_cell(prediction, truth), EXACT))
    return {name: _finite(value) for name, value in score.items()} | {"cells": [[*map(_finite, row)] for row in cells]}


def _finite(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
