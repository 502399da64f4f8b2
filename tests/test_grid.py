"""Axis orders with values that name their own place, and the noise levels of cells."""

import jax.numpy as jnp
import numpy as np

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
