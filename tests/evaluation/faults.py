"""Faults planted in true grids, mild to strong, and the table of what each metric makes of them (docs/evaluation.md).

python tests/evaluation/faults.py
"""

import functools

import numpy as np

from fourreal.evaluation.evaluate import given_cells
from fourreal.evaluation.scoring import METRICS, score_grid
from fourreal.sampling.inputs import read_grid
from fourreal.scene import Cameras

STRENGTHS = range(3)


def blur(truth, strength, rng):
    """Each cell through a Gaussian of sigma 0.5, 1, 2 px."""
    from scipy.ndimage import gaussian_filter

    sigma = (0.5, 1, 2)[strength]
    return gaussian_filter(truth.astype(np.float64), (0, 0, sigma, sigma, 0), mode="nearest").round().astype(np.uint8)


def noise(truth, strength, rng):
    """Gaussian noise of 4, 10, 25 levels."""
    noisy = truth + (4, 10, 25)[strength] * rng.standard_normal(truth.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def frozen_time(truth, strength, rng):
    """Time stops at the last, the last but one, the first moment but the given one (in a grid of 4 times)."""
    times = np.minimum(np.arange(truth.shape[1]), truth.shape[1] - 2 - strength)
    return truth[:, times]


def shuffled_time(truth, strength, rng):
    """In one, two, all of the unknown views, the unknown times in another order, none in its place."""
    out, last = truth.copy(), truth.shape[1]
    for view in range(1, 2 + strength):
        out[view, 1:] = truth[view, [*range(2, last), 1]]
    return out


def camera_jitter(truth, strength, rng):
    """Each cell shifted by 1, 2, 4 px to a side of its own."""
    out = truth.copy()
    for v, t in np.ndindex(truth.shape[:2]):
        axis, sign = rng.integers(2), rng.choice([-1, 1])
        shift = sign * (1, 2, 4)[strength]
        padded = np.pad(truth[v, t], ((4, 4), (4, 4), (0, 0)), mode="edge")
        height, width = truth.shape[2:4]
        down, right = (4 + shift, 4) if axis == 0 else (4, 4 + shift)
        out[v, t] = padded[down : down + height, right : right + width]
    return out


def wrong_view(truth, strength, rng):
    """One, two, all of the unknown views show the view before them."""
    views = np.arange(len(truth))
    views[1 : 2 + strength] -= 1
    return truth[views]


def other_scene(truth, strength, rng):
    """One, two, all of the unknown views are those of another scene."""
    out, other = truth.copy(), next(one for one in bundled_truths() if not np.array_equal(one, truth))
    out[1 : 2 + strength] = other[1 : 2 + strength]
    return out


FAULTS = {
    "blur": blur,
    "frozen time": frozen_time,
    "shuffled time": shuffled_time,
    "camera jitter": camera_jitter,
    "wrong view": wrong_view,
    "other scene": other_scene,
    "noise": noise,
}


def planted(truth, fault, strength):
    """The grid with the fault."""
    return FAULTS[fault](truth, strength, np.random.default_rng(0))


@functools.cache
def bundled_grids():
    """The four bundled grids whose views stand far apart, 4 x 4 of 64 x 64."""
    return [read_grid(name, (4, 4, 64, 64)) for name in ("miner", "spearman", "viking", "wizard")]


def bundled_truths():
    """Their frames."""
    return [grid.truth for grid in bundled_grids()]


def bundled_cameras():
    """Their cameras."""
    return [Cameras(grid.K, grid.c2w) for grid in bundled_grids()]


def fault_scores(truths, given, lpips, cameras=None):
    """Mean over the grids: metric -> fault -> a value for each strength; `cameras` of each grid, for epipolar distances."""
    found = {}
    for fault in FAULTS:
        for strength in STRENGTHS:
            scores = [
                score_grid(planted(truth, fault, strength), truth, given, lpips, cameras=known)
                for truth, known in zip(truths, cameras or [None] * len(truths), strict=True)
            ]
            for name in scores[0].keys() & METRICS:
                mean = np.mean([score[name] for score in scores if score[name] is not None] or np.nan)
                found.setdefault(name, {}).setdefault(fault, []).append(float(mean))
    return found


def main():
    """Prints the table as Markdown."""
    from fourreal.metrics.lpips import make_lpips

    lpips = {network: make_lpips(network) for network in ("alex", "vgg")}
    found = fault_scores(bundled_truths(), given_cells("view_and_time", 4, 4), lpips, bundled_cameras())
    print("| | " + " | ".join(FAULTS) + " |\n" + "|---" * (1 + len(FAULTS)) + "|")
    for name, metric in METRICS.items():
        if name not in found:
            continue
        cells = (" / ".join(f"{value:.{metric.digits}f}" for value in found[name][fault]) for fault in FAULTS)
        print(f"| {metric.label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
