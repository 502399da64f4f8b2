"""The paired bootstrap against SciPy's, against theory, and what it does with missing scores."""

import math

import numpy as np
import pytest
from scipy import stats

from fourreal.metrics.statistics import mean_difference

RNG = np.random.default_rng(0)


def test_interval_is_scipys_percentile_bootstrap():
    ours, theirs = RNG.normal(1, 2, 40), RNG.normal(0, 2, 40)
    mean, low, high = mean_difference(ours, theirs)
    expected = stats.bootstrap((ours - theirs,), np.mean, method="percentile", rng=1).confidence_interval
    assert mean == pytest.approx((ours - theirs).mean())
    # two sets of 10,000 draws: percentiles agree to about 0.02 standard errors
    assert [low, high] == pytest.approx([*expected], abs=0.05 * (ours - theirs).std() / 40**0.5)


def test_interval_of_normal_differences_is_two_standard_errors_wide_each_way():
    differences = RNG.normal(0, 1, 400)
    _, low, high = mean_difference(differences, np.zeros(400))
    assert (high - low) / 2 == pytest.approx(1.96 * differences.std() / 20, rel=0.05)


def test_a_difference_that_all_grids_share_is_certain_however_much_the_grids_differ():
    levels = RNG.normal(20, 5, 10)
    assert mean_difference(levels + 0.1, levels) == pytest.approx((0.1, 0.1, 0.1))


def test_grids_without_a_score_are_left_out_in_pairs():
    ours, theirs = np.arange(8.0), np.zeros(8)
    ours[3] = theirs[5] = math.nan
    assert mean_difference(ours, theirs) == mean_difference(ours[[0, 1, 2, 4, 6, 7]], np.zeros(6))


def test_under_six_grids_there_is_no_interval_and_without_grids_no_mean():
    mean, low, high = mean_difference(np.ones(5), np.zeros(5))
    assert mean == 1 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, mean_difference(np.array([math.nan]), np.zeros(1))))
