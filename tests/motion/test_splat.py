"""Forward splatting against a loop over pixels."""

import numpy as np

from fourreal.motion.splat import landing, read_at, splat


def one_by_one(picture, motion, rank, valid):
    """(moved, filled) before cracks are filled; of equal ranks the later pixel stays."""
    height, width = rank.shape
    moved, filled = np.zeros_like(picture), np.zeros(rank.shape, bool)
    for value in range(256):
        for y, x in np.argwhere((rank == value) & valid):
            to = y + round(float(motion[y, x, 1])), x + round(float(motion[y, x, 0]))
            if 0 <= to[0] < height and 0 <= to[1] < width:
                moved[to], filled[to] = picture[y, x], True
    return moved, filled


def test_every_valid_pixel_goes_where_its_motion_points_and_the_highest_rank_stays():
    rng = np.random.default_rng(0)
    picture = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
    motion = rng.uniform(-4, 4, (9, 7, 2)).astype(np.float32)
    rank, valid = rng.integers(4, size=(9, 7)).astype(np.uint8), rng.random((9, 7)) < 0.8
    moved, filled = splat(picture, motion, rank, valid)
    expected, landed = one_by_one(picture, motion, rank, valid)
    np.testing.assert_array_equal(moved[landed], expected[landed])
    assert filled[landed].all() and not moved[~filled].any()


def test_a_crack_between_two_filled_pixels_takes_their_mean_and_a_wider_hole_stays():
    picture = np.array([[[10], [20], [30]]], np.uint8)
    growing = np.float32([[[0, 0], [1, 0], [1, 0]]])  # to 0, 2, 3
    picture, growing = (np.pad(x, ((0, 0), (0, 4), (0, 0))) for x in (picture, growing))
    valid = np.array([[True] * 3 + [False] * 4])
    valid[0, 6] = True  # stays at 6, black
    moved, filled = splat(picture, growing, np.zeros((1, 7), np.uint8), valid)
    np.testing.assert_array_equal(filled[0], [True, True, True, True, False, False, True])
    np.testing.assert_array_equal(moved[0, :4, 0], [10, 15, 20, 30])
    turned, also = splat(
        *(x.swapaxes(0, 1) for x in (picture, growing[..., ::-1])), np.zeros((7, 1), np.uint8), valid.T
    )
    np.testing.assert_array_equal(turned[:, 0], moved[0])
    np.testing.assert_array_equal(also[:, 0], filled[0])


def test_landing_says_what_leaves_the_picture():
    nearest, inside = landing(np.float32([[[0.4, 0], [0.6, 0]], [[-1, 0], [0, -1]]]))
    np.testing.assert_array_equal(nearest, [[[0, 0], [2, 0]], [[-1, 1], [1, 0]]])
    np.testing.assert_array_equal(inside, [[True, False], [False, True]])


def test_values_are_read_at_the_nearest_pixel_and_those_of_the_edge_outside():
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    nearest = np.int16([[[1, 0], [0, 1]], [[-5, 0], [9, 9]]])
    np.testing.assert_array_equal(read_at(values, nearest), values[[[0, 1], [0, 1]], [[1, 0], [0, 1]]])
