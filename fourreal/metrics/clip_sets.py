"""How far apart two sets of clips are, by their features: the distances of FVD and KVD (Unterthiner et al. 2018).

    frechet_distance = |mx - my|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2))
    kernel_distance  = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),    k(a, b) = (a . b / d + 1)^3

m are means and S covariances of features with d numbers each. With A, B the centred features over sqrt(n - 1), the trace of
(Sx Sy)^(1/2) is the sum of the singular values of A B^T, which needs no root of a matrix and bears fewer clips than numbers.

The Frechet distance of n clips is too large by a bias that falls with n: read it from 256 clips on, and compare sets of equal
size. The kernel distance, a squared maximum mean discrepancy, is 0 on average for sets of one kind at any size, and so below
0 half the time. That holds for independent clips, so pairs of clips from one scene count in none of its means.
"""

import numpy as np
from jaxtyping import Float, Int

FEWEST_CLIPS = 256  # for a Frechet distance


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The Frechet distance of the Gaussians with the means and covariances of both sets; nan with under two clips."""
    if min(len(x), len(y)) < 2:
        return float("nan")
    means = [features.astype(np.float64).mean(0) for features in (x, y)]
    a, b = ((features - mean) / np.sqrt(len(features) - 1) for features, mean in zip((x, y), means, strict=True))
    traces = np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    return max(0.0, float(np.square(means[0] - means[1]).sum() + traces))  # rounding may be below


def kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    x_scenes: Int[np.ndarray, "n"],
    y_scenes: Int[np.ndarray, "m"],
) -> float:
    """The unbiased squared maximum mean discrepancy under the cubic kernel; nan without clips of different scenes."""

    def mean(a: np.ndarray, b: np.ndarray, a_scenes: np.ndarray, b_scenes: np.ndarray) -> float:
        others = a_scenes[:, None] != b_scenes
        kernel = (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3
        return kernel[others].mean() if others.any() else float("nan")

    own = mean(x, x, x_scenes, x_scenes) + mean(y, y, y_scenes, y_scenes)
    return float(own - 2 * mean(x, y, x_scenes, y_scenes))
