"""Rotary embedding against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from wan_rotary import angle, turn

from fourreal.nn.rotary import rotary_angles, rotate

HEADS, HEAD = 2, 12
FRAMES, HEIGHT, ACROSS = 3, 2, 3
TOKENS = HEIGHT * ACROSS


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("head_size", [6, 8, 12, 32, 64, 128])
def test_rotary_angles_split_a_head_into_time_y_and_x_as_wan_does(head_size):
    angles = rotary_angles(np.array([0, 2, 5]), HEIGHT, ACROSS, head_size)
    assert angles.shape == (3, TOKENS, head_size // 2)
    for f, frame in enumerate((0, 2, 5)):
        for s in range(TOKENS):
            expected = [angle(frame, s // ACROSS, s % ACROSS, pair, head_size) for pair in range(head_size // 2)]
            np.testing.assert_allclose(angles[f, s], expected, rtol=1e-6)


def test_rotation_multiplies_neighbouring_pairs_that_lie_apart_as_complex_numbers():
    x = normal(FRAMES, TOKENS, HEADS, HEAD)
    angles = rotary_angles(np.arange(FRAMES), HEIGHT, ACROSS, HEAD)
    apart = np.r_[0:HEAD:2, 1:HEAD:2]
    rotated = rotate(jnp.asarray(x[..., apart], jnp.float32), angles)
    np.testing.assert_allclose(rotated, turn(x, ACROSS)[..., apart], atol=5e-6)


def test_rotated_products_depend_on_relative_positions_only():
    q, k = (jnp.asarray(normal(FRAMES, TOKENS, HEADS, HEAD, seed=seed), jnp.float32) for seed in range(2))

    def products(frames):
        angles = rotary_angles(frames, HEIGHT, ACROSS, HEAD)
        return jnp.einsum("fshe,gthe->hfsgt", rotate(q, angles), rotate(k, angles))

    here, moved = products(np.arange(FRAMES)), products(np.arange(FRAMES) + 5)
    np.testing.assert_allclose(here, moved, atol=2e-5)  # sums of 12 products, angles up to 7 in fp32
    assert np.abs(here - products(np.arange(FRAMES) * 2)).max() > 0.1
