"""Axis orders with values that name their own place, hints against a loop, noise levels of cells."""

import jax.numpy as jnp
import numpy as np
import pytest

from fourreal import grid

HEIGHT, WIDTH, CHANNELS, PATCH = 4, 6, 3, 2


def ranks(*shape) -> np.ndarray:
    """Every value is its own place, so that any wrong order shows."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_patches_are_in_the_order_channel_y_x_of_wans_embedding():
    frame = ranks(2, HEIGHT, WIDTH, CHANNELS)
    tokens = np.asarray(grid.patchify(jnp.asarray(frame), PATCH))
    assert tokens.shape == (2, 6, 12)
    for token in range(6):
        top, left = PATCH * (token // 3), PATCH * (token % 3)
        for k in range(12):
            c, y, x = k // 4, k // 2 % 2, k % 2
            np.testing.assert_array_equal(tokens[:, token, k], frame[:, top + y, left + x, c])


def test_unpatchified_frames_take_patches_in_the_order_y_x_channel_of_wans_head():
    tokens = ranks(2, 6, 12)
    frame = np.asarray(grid.unpatchify(jnp.asarray(tokens), PATCH, HEIGHT))
    assert frame.shape == (2, HEIGHT, WIDTH, CHANNELS)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            token = y // PATCH * 3 + x // PATCH
            for c in range(CHANNELS):
                k = (y % PATCH * PATCH + x % PATCH) * CHANNELS + c
                np.testing.assert_array_equal(frame[:, y, x, c], tokens[:, token, k])


def test_swapping_view_and_time_moves_no_other_axis():
    x = ranks(2, 3, 4, 5, 2)
    swapped = np.asarray(grid.swap_view_time(jnp.asarray(x)))
    for v in range(3):
        for t in range(4):
            np.testing.assert_array_equal(swapped[:, t, v], x[:, v, t])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_nearest_given_frame_is_that_of_a_search_for_every_mask(frames):
    masks = np.array([[number >> f & 1 for f in range(frames)] for number in range(2**frames)], bool)
    index, exists = (np.asarray(a) for a in grid.nearest_given(jnp.asarray(masks)))
    for mask, found, any_given in zip(masks, index, exists[:, 0], strict=True):
        assert any_given == mask.any()
        for f in range(frames):
            candidates = [g for g in range(frames) if mask[g]]
            if candidates:
                assert found[f] == min(candidates, key=lambda g: (abs(g - f), g))  # the earlier of two


def nearest(given: np.ndarray, position: int) -> int | None:
    return min(np.flatnonzero(given), key=lambda g: (abs(g - position), g), default=None)


def test_hints_are_the_nearest_given_cells_of_the_own_or_the_nearest_view_and_time():
    x = ranks(4, 3, 4, 2, 2, 3) + 1  # no zero among the pixels
    given = np.random.default_rng(0).random((4, 3, 4)) < 0.3
    given[1], given[2] = False, False
    given[2, 1, 2] = True
    assert not given.any(2).all() and not given.any(1).all()
    hints = np.asarray(grid.grid_hints(jnp.asarray(x), jnp.asarray(given)))
    assert hints.shape == (4, 3, 4, 2, 2, 2, 4)
    for b, v, t in np.ndindex(given.shape):
        if not given[b].any():
            np.testing.assert_array_equal(hints[b, v, t], 0)
            continue
        of_view, of_time = nearest(given[b].any(1), v), nearest(given[b].any(0), t)
        cells = (of_view, nearest(given[b, of_view], t)), (nearest(given[b, :, of_time], v), of_time)
        for slot, (cell, own) in enumerate(zip(cells, (of_view == v, of_time == t), strict=True)):
            np.testing.assert_array_equal(hints[b, v, t, slot, ..., :3], x[b, *cell])
            np.testing.assert_array_equal(hints[b, v, t, slot, ..., 3], own)


def test_sigma_of_an_example_reaches_all_of_its_unknown_cells():
    given = np.zeros((2, 2, 3), bool)
    given[0, 1, 2] = given[1, 0] = True
    sigma = np.asarray(grid.cell_sigma(jnp.asarray([0.3, 0.7]), jnp.asarray(given)))
    np.testing.assert_array_equal(sigma, np.where(given, 0, np.float32([0.3, 0.7])[:, None, None]))


def test_sigma_of_every_cell_stays_and_is_0_where_given():
    sigma, given = ranks(2, 2, 3) / 12, ranks(2, 2, 3) % 5 == 1
    result = grid.cell_sigma(jnp.asarray(sigma), jnp.asarray(given))
    np.testing.assert_array_equal(result, np.where(given, 0, sigma))


def test_all_256_levels_survive_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    floats = grid.to_unit(jnp.asarray(levels))
    assert float(floats[0]) == -1 and float(floats[255]) == 1
    np.testing.assert_allclose(floats, levels / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(grid.to_uint8(floats), levels)


def test_values_outside_are_clipped_and_others_rounded():
    np.testing.assert_array_equal(
        grid.to_uint8(jnp.asarray([-1.5, 1.5, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])), [0, 255, 0, 1]
    )
