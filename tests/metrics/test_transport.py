"""The transport baseline where its answer is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

pytest.importorskip("cv2", reason="the eval extra is not installed")

from fourreal.metrics.baselines import copy_freeze_time
from fourreal.metrics.pixels import psnr
from fourreal.metrics.transport import flow_transport

GIVEN = np.array([[True, True, True], [True, False, False]])


@pytest.fixture
def moving_texture():
    """A smooth texture that moves 2 px right and 1 px down a step; both views see it, the second darker."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(80, 80, 3)), (2, 2, 0)) * 600 + 128
    texture = texture.clip(0, 255).astype(np.uint8)
    first = [texture[8 - t : 72 - t, 8 - 2 * t : 72 - 2 * t] for t in range(3)]
    return np.array([first, [frame // 2 for frame in first]])


def test_transport_moves_the_views_frame_as_the_given_video_moves(moving_texture):
    hidden = np.where(GIVEN[:, :, None, None, None], moving_texture, np.uint8(0))
    inside = np.zeros((2, 3, 64, 64), bool)
    inside[1, 1:, 10:-10, 10:-10] = True
    assert psnr(flow_transport(hidden, GIVEN), moving_texture, inside) > 35
    assert psnr(copy_freeze_time(hidden, GIVEN), moving_texture, inside) < 25


def test_where_nothing_moves_or_no_video_is_given_transport_is_the_copy(moving_texture):
    still = np.repeat(moving_texture[:, :1], 3, axis=1)
    np.testing.assert_array_equal(flow_transport(still, GIVEN), still)
    orbit = np.array([[True, False, False], [True, False, False]])
    np.testing.assert_array_equal(flow_transport(moving_texture, orbit), copy_freeze_time(moving_texture, orbit))
