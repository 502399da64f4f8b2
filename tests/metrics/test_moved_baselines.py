"""The baselines that move pixels where their answers are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fourreal.metrics.baselines import copy_fixed_view, copy_freeze_time
from fourreal.metrics.moved_baselines import moved_baselines
from fourreal.metrics.pixels import psnr

GIVEN = np.array([[True, True, True], [True, False, False]])
A, B, MEAN, MEDIAN, STILL = (
    "moved, of its view",
    "moved, of its time",
    "mean of both moved",
    "median of copies and moved",
    "copy where still, else the mean",
)


@pytest.fixture
def moving_texture():
    """A smooth texture that moves 2 px right and 1 px down a step; both views see it, the second darker."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(80, 80, 3)), (2, 2, 0)) * 600 + 128
    texture = texture.clip(0, 255).astype(np.uint8)
    first = [texture[8 - t : 72 - t, 8 - 2 * t : 72 - 2 * t] for t in range(3)]
    return np.array([first, [frame // 4 * 3 for frame in first]])


def test_what_is_moved_of_the_own_view_goes_as_the_given_video_goes(moving_texture):
    hidden = np.where(GIVEN[:, :, None, None, None], moving_texture, np.uint8(0))
    inside = np.zeros((2, 3, 64, 64), bool)
    inside[1, 1:, 10:-10, 10:-10] = True
    rows = moved_baselines(hidden, GIVEN)
    assert list(rows) == [A, B, MEAN, MEDIAN, STILL]
    assert psnr(rows[A], moving_texture, inside) > 33  # a third of a pixel of rounding at the working size
    assert psnr(copy_freeze_time(hidden, GIVEN), moving_texture, inside) < 25
    fixed = copy_fixed_view(hidden, GIVEN)
    assert psnr(rows[B], fixed, inside) > 33  # the views differ in brightness alone: nothing to move
    np.testing.assert_allclose(rows[MEAN], (rows[A].astype(float) + rows[B]) / 2, atol=0.5)
    four = np.stack([rows[A], rows[B], fixed, copy_freeze_time(hidden, GIVEN)]).astype(float)
    np.testing.assert_allclose(rows[MEDIAN], np.median(four, 0), atol=0.5)


def test_where_nothing_moves_the_copy_stays_and_elsewhere_the_mean_of_all():
    frames = np.zeros((2, 2, 96, 96, 3), np.uint8)
    frames[1] = 40
    frames[0, 1, :, 48:] = 100  # the given video brightens on the right
    given = np.array([[True, True], [True, False]])
    row = moved_baselines(frames, given)
    np.testing.assert_array_equal(row[STILL][1, 1, :, :40], 40)
    mean = np.mean([row[A][1, 1], row[B][1, 1], frames[1, 0], frames[0, 1]], axis=0)
    np.testing.assert_allclose(row[STILL][1, 1, :, 56:], mean[:, 56:], atol=0.5)


def test_without_a_rectangle_the_moved_are_the_copies(moving_texture):
    orbit = np.array([[True, False, False], [True, False, False]])
    rows = moved_baselines(moving_texture, orbit)
    np.testing.assert_array_equal(rows[A], copy_freeze_time(moving_texture, orbit))
    np.testing.assert_array_equal(rows[B], copy_fixed_view(moving_texture, orbit))
