import math

import numpy as np
import pytest

from fourreal.evaluation.metrics import moving_mask, psnr, psnr_by_motion, psnr_per_cell


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
