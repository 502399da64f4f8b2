import numpy as np
import pytest

from fourreal.metrics.baselines import BASELINES, best_copy, copy_fixed_view, copy_freeze_time, sum_of_differences


def coded(views=3, times=4):
    """A grid whose cell (v, t) has the level 10 + 40 v + t everywhere."""
    levels = 10 + 40 * np.arange(views)[:, None] + np.arange(times)
    return np.broadcast_to(levels[:, :, None, None, None], (views, times, 2, 2, 3)).astype(np.uint8)


def levels(frames):
    assert (frames == frames[:, :, :1, :1, :1]).all()
    return frames[:, :, 0, 0, 0].astype(int)


def mask(*cells, views=3, times=4):
    given = np.zeros((views, times), bool)
    for v, t in cells:
        given[v, t] = True
    return given


L_SHAPE = mask((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0))


def hidden(frames, given):
    """Unknown cells hold a level that must never be read."""
    return np.where(given[:, :, None, None, None], frames, np.uint8(255))


def test_freeze_time_copy_takes_the_views_given_frame():
    assert (levels(copy_freeze_time(hidden(coded(), L_SHAPE), L_SHAPE))[1:] == [[50] * 4, [90] * 4]).all()


def test_fixed_view_copy_takes_the_times_given_frame():
    assert (levels(copy_fixed_view(hidden(coded(), L_SHAPE), L_SHAPE))[1:, 1:] == [11, 12, 13]).all()


def test_sum_of_differences_is_exact_on_a_grid_that_is_a_sum():
    assert (sum_of_differences(hidden(coded(), L_SHAPE), L_SHAPE) == coded()).all()


def test_sum_of_differences_is_clipped_not_wrapped():
    frames = coded(2, 2).copy()
    frames[0, 0], frames[0, 1], frames[1, 0] = 10, 200, 200
    given = mask((0, 0), (0, 1), (1, 0), views=2, times=2)
    assert (levels(sum_of_differences(frames, given))[1, 1] == 255).all()


def test_copies_take_the_nearest_given_frame():
    given = mask((1, 0), (1, 3), (0, 2), (2, 2))
    frames = hidden(coded(), given)
    assert levels(copy_freeze_time(frames, given))[1].tolist() == [50, 50, 53, 53]
    given = mask((0, 2), (2, 2))
    assert levels(copy_fixed_view(hidden(coded(), given), given))[1, 2] == 12  # a tie: the earlier view


def test_a_cell_without_its_own_copy_takes_the_other_then_the_nearest_of_all_then_grey():
    given = mask((1, 2), (0, 0))
    frames = hidden(coded(), given)
    assert levels(copy_freeze_time(frames, given)).tolist() == [[10] * 4, [52] * 4, [10, 52, 52, 52]]
    assert levels(copy_fixed_view(frames, given)).tolist() == [[10, 10, 52, 10], [10, 52, 52, 52], [10, 52, 52, 52]]
    for copy in (copy_freeze_time, copy_fixed_view, sum_of_differences):
        assert (copy(frames, mask()) == 128).all()


def test_the_sum_needs_the_corner_and_else_falls_back_to_the_freeze_time_copy():
    given = mask((1, 0), (0, 1))  # the corner (0, 0) is unknown
    assert levels(sum_of_differences(hidden(coded(), given), given))[1, 1] == 50


@pytest.mark.parametrize("name", BASELINES)
def test_given_cells_come_back_bit_for_bit_and_the_input_is_untouched(name):
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 2, 2, 3), dtype=np.uint8)
    before = frames.copy()
    assert (BASELINES[name](frames, L_SHAPE)[L_SHAPE] == before[L_SHAPE]).all()
    assert (frames == before).all()


def test_best_copy_is_the_one_nearer_to_the_truth():
    frames = coded()  # times differ by 1 level, views by 40
    assert best_copy(frames, L_SHAPE, frames)[0] == "copy of the freeze-time frame"
    swapped = np.ascontiguousarray(frames.swapaxes(0, 1))
    name, copy = best_copy(swapped, L_SHAPE.T.copy(), swapped)
    assert name == "copy of the fixed-view frame"
    assert (copy == copy_fixed_view(swapped, L_SHAPE.T)).all()
