"""The distances of FVD and KVD against SciPy's root of a matrix, an analytic case and a double loop."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fourreal.metrics.clip_sets import frechet_distance, kernel_distance

RNG = np.random.default_rng(0)
WIDTH = 5


def gaussian(count, deviations, mean=0.0):
    """Features whose mean and covariance are exactly these."""
    x = RNG.normal(size=(count, WIDTH))
    x = np.linalg.qr(x - x.mean(0))[0] * math.sqrt(count - 1)
    return x * deviations + mean


def test_frechet_distance_of_gaussians_with_commuting_covariances_is_analytic():
    one, other, shift = np.array([1.0, 2, 3, 0, 1]), np.array([2.0, 2, 1, 1, 0]), np.array([0.5, -1, 2, 0, 3])
    expected = (shift**2).sum() + ((one - other) ** 2).sum()
    assert frechet_distance(gaussian(40, one), gaussian(30, other, shift)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [50, 4])  # more and fewer than there are numbers
def test_frechet_distance_is_that_of_the_root_of_the_covariances(count):
    x, y = RNG.normal(size=(count, WIDTH)) @ RNG.normal(size=(WIDTH, WIDTH)), RNG.normal(1, 2, (60, WIDTH))
    covariances = [np.cov(features.T) for features in (x, y)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9) and frechet_distance(x, x) >= 0
    assert math.isnan(frechet_distance(x[:1], y))


def test_kernel_distance_is_the_double_loop_over_pairs_of_different_scenes():
    x, y = RNG.normal(size=(7, WIDTH)), RNG.normal(0.5, 1, (6, WIDTH))
    x_scenes, y_scenes = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 3, 3])

    def mean(a, a_scenes, b, b_scenes):
        values = [
            (sum(p * q for p, q in zip(one, other, strict=True)) / WIDTH + 1) ** 3
            for one, i in zip(a, a_scenes, strict=True)
            for other, j in zip(b, b_scenes, strict=True)
            if i != j
        ]
        return sum(values) / len(values)

    expected = mean(x, x_scenes, x, x_scenes) + mean(y, y_scenes, y, y_scenes) - 2 * mean(x, x_scenes, y, y_scenes)
    assert kernel_distance(x, y, x_scenes, y_scenes) == pytest.approx(expected)
    assert kernel_distance(x, x, x_scenes, x_scenes) == 0
    assert math.isnan(kernel_distance(x[:2], y, x_scenes[:2], y_scenes))


@pytest.mark.parametrize("paired", [False, True])
def test_kernel_distance_is_zero_on_average_for_sets_of_one_kind_whether_of_the_same_scenes_or_not(paired):
    def draw():
        scenes = RNG.normal(size=(12, 1, WIDTH))  # clips of one scene are alike
        x, y = (
            here + 0.3 * RNG.normal(size=(6, 4, WIDTH)) for here in (scenes[:6], scenes[:6] if paired else scenes[6:])
        )
        numbers = np.repeat(np.arange(6), 4)
        flat = (np.concatenate(clips) for clips in (x, y))
        return kernel_distance(*flat, numbers, numbers if paired else numbers + 6)

    found = np.array([draw() for _ in range(400)])
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(len(found))
