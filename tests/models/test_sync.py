"""The synchronization layers against their formulas in NumPy, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fourreal.models import sync

VIEWS, TIMES, TOKENS, WIDTH = 2, 3, 4, 6
MIXES = [("soft", "zero"), ("soft", "consensus"), ("hard", "half"), ("hard", "time"), ("hard", "view")]


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def streams() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y_v [b t v s d], y_t [b v t s d], shift and scale [b v t 2 2 d]."""
    return (
        normal(2, TIMES, VIEWS, TOKENS, WIDTH),
        normal(2, VIEWS, TIMES, TOKENS, WIDTH, seed=1),
        normal(2, VIEWS, TIMES, 2, 2, WIDTH, seed=2),
    )


def layer(fusion: str, init: str, random: bool, dtype=jnp.float32) -> nnx.Module:
    module = sync.make_sync(fusion, init, WIDTH, dtype=dtype, rngs=nnx.Rngs(0))
    if random:
        linear = module.mod_linear
        for seed, part in enumerate((linear.kernel, linear.bias, linear.modulation)):
            part[...] = jnp.asarray(normal(*part.shape, seed=10 + seed))
    return module


def mod_linear(linear: sync.ModLinear, view: np.ndarray, time: np.ndarray, shift_scale: np.ndarray, output: int):
    """((1 + scale) z + shift) W + bias for one token [d], in fp64."""
    kernel, bias, table = (np.asarray(p[...], np.float64) for p in (linear.kernel, linear.bias, linear.modulation))
    shift, scale = shift_scale + table
    z = (1 + scale) * np.stack([view, time]) + shift
    return np.concatenate(z) @ kernel[:, :, output].reshape(2 * WIDTH, WIDTH) + bias[output]


def fixed(fusion: str, init: str, view: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x_v, x_t) of one token without the ModLinear."""
    mean = (view + time) / 2
    return {
        ("soft", "zero"): (view, time),
        ("soft", "consensus"): (mean, mean),
        ("hard", "half"): (mean, mean),
        ("hard", "time"): (time, time),
        ("hard", "view"): (view, view),
    }[fusion, init]


@pytest.mark.parametrize(("fusion", "init"), MIXES)
def test_sync_layer_is_its_formula_at_every_token(fusion, init):
    y_v, y_t, shift_scale = streams()
    module = layer(fusion, init, random=True)
    x_v, x_t = jax.jit(lambda *a: module(*a))(y_v, y_t, shift_scale.swapaxes(1, 2), shift_scale)
    for b, v, t, s in np.ndindex(2, VIEWS, TIMES, TOKENS):
        view, time = y_v[b, t, v, s], y_t[b, v, t, s]
        mix_v, mix_t = fixed(fusion, init, view, time)
        outputs = (0, 1) if fusion == "soft" else (0, 0)
        d_v, d_t = (mod_linear(module.mod_linear, view, time, shift_scale[b, v, t], o) for o in outputs)
        # sums of 12 products of three normals
        np.testing.assert_allclose(x_v[b, t, v, s], mix_v + d_v, atol=2e-5)
        np.testing.assert_allclose(x_t[b, v, t, s], mix_t + d_t, atol=2e-5)


@pytest.mark.parametrize(("fusion", "init"), MIXES)
def test_fresh_sync_layer_is_its_fixed_mix_even_around_bf16_matmuls(fusion, init):
    y_v, y_t, shift_scale = streams()
    x_v, x_t = layer(fusion, init, random=False, dtype=jnp.bfloat16)(
        *map(jnp.asarray, (y_v, y_t, shift_scale.swapaxes(1, 2), shift_scale))
    )
    mix_v, mix_t = fixed(fusion, init, np.swapaxes(y_v, 1, 2), y_t)
    # one rounding of fp32: a stream through bf16 would be off by 4e-3
    np.testing.assert_allclose(np.swapaxes(x_v, 1, 2), mix_v, atol=3e-7)
    np.testing.assert_allclose(x_t, mix_t, atol=3e-7)


def test_shift_and_scale_of_a_fresh_projection_are_zero_at_every_sigma():
    projection = sync.SigmaProjection(WIDTH, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(projection(jnp.asarray(normal(2, VIEWS, TIMES, WIDTH))), 0)


def test_projection_gives_shift_then_scale_for_view_then_time():
    projection = sync.SigmaProjection(WIDTH, rngs=nnx.Rngs(0))
    kernel, temb = normal(WIDTH, 4 * WIDTH, seed=4), normal(1, VIEWS, TIMES, WIDTH)
    projection.linear.kernel[...] = jnp.asarray(kernel)
    out = np.asarray(projection(jnp.asarray(temb)))
    silu = temb / (1 + np.exp(-temb))
    for part, (kind, stream) in enumerate(np.ndindex(2, 2)):
        expected = silu @ kernel[:, part * WIDTH : (part + 1) * WIDTH]
        np.testing.assert_allclose(out[..., kind, stream, :], expected, atol=5e-6)
