"""Layer norm against its formula in NumPy, fp64."""

import jax.numpy as jnp
import numpy as np

from fourreal.nn.norms import layer_norm, modulate

WIDTH, FRAMES, TOKENS = 24, 3, 6
TOLERANCE = 5e-6  # fp32 sums of a few dozen numbers near 1, against fp64


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_layer_norm_has_mean_0_and_variance_1_with_wans_epsilon():
    x = normal(5, WIDTH) * 3 + 7
    np.testing.assert_allclose(layer_norm(jnp.asarray(x, jnp.float32)), norm(x), atol=TOLERANCE)
    tiny = 1e-3 * x  # its variance is 9 epsilons: epsilon counts, and stands under the root
    np.testing.assert_allclose(layer_norm(jnp.asarray(tiny, jnp.float32)), norm(tiny), atol=5e-5)
    np.testing.assert_array_equal(layer_norm(jnp.full((2, WIDTH), 3.0)), 0)


def test_modulation_scales_by_one_plus_scale_then_shifts_per_frame():
    x, shift, scale = normal(FRAMES, TOKENS, WIDTH), normal(FRAMES, WIDTH, seed=1), normal(FRAMES, WIDTH, seed=2)
    out = modulate(*(jnp.asarray(a, jnp.float32) for a in (x, shift, scale)))
    for f in range(FRAMES):
        np.testing.assert_allclose(out[f], norm(x[f]) * (1 + scale[f]) + shift[f], atol=TOLERANCE)
