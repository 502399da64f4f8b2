import math

import numpy as np
import pytest

from fourreal.metrics.pixels import (
    gradient_energy_by_motion,
    moving_mask,
    psnr,
    psnr_by_motion,
    psnr_per_cell,
    ssim_by_motion,
    ssim_map,
)


def grid(views=2, times=3, size=4, level=100):
    return np.full((views, times, size, size, 3), level, np.uint8)


def test_psnr_of_a_constant_error_is_the_analytic_value():
    assert psnr(grid(level=110), grid(level=100)) == pytest.approx(20 * math.log10(255 / 10), abs=1e-12)


def test_psnr_does_not_wrap_around_in_uint8():
    assert psnr(grid(level=0), grid(level=255)) == pytest.approx(0, abs=1e-12)


def test_psnr_counts_only_the_pixels_asked_for():
    truth, prediction = grid(), grid()
    prediction[0, 0] = 120
    where = np.zeros((2, 3, 4, 4), bool)
    where[0, 0, :2] = True
    where[0, 1, :2] = True  # half of the chosen pixels are off by 20 levels: mse 200
    assert psnr(prediction, truth, where) == pytest.approx(10 * math.log10(255**2 / 200), abs=1e-12)


def test_psnr_of_equal_grids_is_infinite_and_of_no_pixels_is_nan():
    assert psnr(grid(), grid()) == math.inf
    assert math.isnan(psnr(grid(), grid(level=1), np.zeros((2, 3, 1, 1), bool)))


def test_psnr_refuses_grids_of_different_shape():
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(grid(), grid(times=1))


def test_a_pixel_moves_if_one_channel_spans_more_than_twelve_levels_over_time():
    frames = grid()
    frames[0, 2, 1, 1, 2] += 13
    frames[0, 1, 2, 2, 0] += 12
    frames[1, :, 3, 3] += 50  # the other view differs, but not over time
    frames[1, 0, 0, 0, 0], frames[1, 2, 0, 0, 0] = 93, 107  # 7 either side of the level between
    moving = moving_mask(frames)
    assert moving.shape == (2, 3, 4, 4)
    assert np.argwhere(moving[:, 0]).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert (moving == moving[:, :1]).all()


def test_scores_by_motion_leave_out_given_cells_and_split_moving_from_static():
    truth = grid()
    truth[:, 2, 0] = 200  # the first row of pixels moves
    prediction = truth.copy()
    prediction[0, 0] = 0  # given: must not count
    prediction[1, 1, 0] += 4
    prediction[1, 1, 1:] += 2
    given = np.ones((2, 3), bool)
    given[1, 1] = False
    scores = psnr_by_motion(prediction, truth, given)
    assert scores["moving"] == pytest.approx(20 * math.log10(255 / 4))
    assert scores["static"] == pytest.approx(20 * math.log10(255 / 2))
    assert scores["all"] == pytest.approx(10 * math.log10(255**2 / ((16 + 3 * 4) / 4)))


def test_scores_per_cell_stand_at_their_view_and_time():
    truth, prediction = grid(), grid()
    prediction[1, 2] += 255 - 100
    scores = psnr_per_cell(prediction, truth)
    assert scores[1][2] == pytest.approx(20 * math.log10(255 / 155))
    assert scores[0] == [math.inf] * 3


def random_pair(shape=(20, 24, 3)):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    return x, (0.6 * x + rng.integers(0, 90, shape)).astype(np.uint8)


def test_ssim_is_that_of_scikit_image():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = random_pair()
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    mean, full = structural_similarity(x, y, channel_axis=-1, full=True, **settings)
    np.testing.assert_allclose(ssim_map(x, y), full[5:-5, 5:-5].mean(-1), atol=1e-12)
    assert ssim_map(x, y).mean() == pytest.approx(mean, abs=1e-12)


def test_ssim_of_flat_pictures_compares_their_means():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1)
    found = ssim_map(grid(size=12, level=100), grid(size=12, level=140))
    np.testing.assert_allclose(found, expected, rtol=1e-9)  # 1e-12 of a variance of 0 remains beside C2


def test_ssim_by_motion_leaves_out_given_cells_and_splits_moving_from_static():
    truth, noisy = random_pair((1, 2, 24, 24, 3))
    truth[:, 1, 12:] = truth[:, 0, 12:]  # the lower half stands still
    prediction, given = np.where(np.arange(2)[:, None, None, None], noisy, 0), np.array([[True, False]])
    prediction = prediction.astype(np.uint8)
    window = ssim_map(prediction[0, 1], truth[0, 1])
    moving = moving_mask(truth)[0, 1, 5:-5, 5:-5]
    assert not moving[7:].any() and moving[:7].mean() > 0.9
    scores = ssim_by_motion(prediction, truth, given)
    assert scores["all"] == pytest.approx(window.mean(), abs=1e-12)
    assert scores["moving"] == pytest.approx(window[moving].mean(), abs=1e-12)
    assert scores["static"] == pytest.approx(window[~moving].mean(), abs=1e-12)


def test_frames_smaller_than_the_window_have_no_ssim():
    assert math.isnan(ssim_by_motion(grid(), grid(), np.zeros((2, 3), bool))["all"])


def test_gradient_energy_grows_with_the_square_of_the_slope():
    ramp = np.arange(8, dtype=np.uint8)[:, None] * np.uint8(2) + np.zeros((8, 8), np.uint8)
    truth = np.broadcast_to(ramp[..., None], (1, 2, 8, 8, 3)).copy()
    steeper = truth * np.uint8(3)
    given = np.array([[True, False]])
    assert gradient_energy_by_motion(steeper, truth, given)["all"] == pytest.approx(9)
    across = steeper.swapaxes(2, 3)  # the other axis counts as much
    assert gradient_energy_by_motion(across, truth, given)["static"] == pytest.approx(9)
    steeper[0, 0] = 0  # given: must not count
    assert gradient_energy_by_motion(steeper, truth, given)["all"] == pytest.approx(9)
    assert math.isnan(gradient_energy_by_motion(steeper, truth, given)["moving"])
