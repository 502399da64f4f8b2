"""`Denoiser`: what the model sees of what is known, what comes back, gradients, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_denoiser import PARAMS, known_cells, normal, spied, toy

from fourreal.diffusion.denoiser import make_denoiser
from fourreal.errors import UserError
from fourreal.models import GridDiTConfig

SHAPE = (2, 2, 3, 4, 4, 3)
X, KNOWN = normal(*SHAPE, seed=2), known_cells(SHAPE)
MASK = np.asarray(KNOWN.mask)


def test_known_frames_are_in_the_input_at_sigma_0_and_in_the_answer_bit_for_bit():
    spy = spied()
    out = spy.denoiser(PARAMS, X, jnp.float32(0.6), KNOWN)
    jax.effects_barrier()
    ((x, sigma, given),) = spy.seen
    np.testing.assert_array_equal(x, np.where(MASK[..., None, None, None], KNOWN.frames, X))
    np.testing.assert_array_equal(sigma, np.where(MASK, 0, np.float32(0.6)))
    np.testing.assert_array_equal(given, MASK)
    np.testing.assert_array_equal(np.asarray(out)[MASK], KNOWN.frames[MASK])


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_prediction_alone_is_the_answer_where_nothing_is_known(prediction):
    denoiser = toy(prediction=prediction)
    level = np.random.default_rng(3).uniform(0.1, 1, SHAPE[:3]).astype(np.float32)
    answer, alone = (call(PARAMS, X, level, KNOWN) for call in (denoiser, denoiser.predict))
    np.testing.assert_array_equal(answer[~MASK], alone[~MASK])
    raw, x, sigma = denoiser.output(PARAMS, X, level, KNOWN)
    expected = raw if prediction == "x0" else x - sigma[..., None, None, None] * raw
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    if prediction == "x0":
        assert np.abs(alone[MASK] - KNOWN.frames[MASK]).max() > 0.1
    else:  # at sigma 0 a velocity leaves the frame as it is
        np.testing.assert_array_equal(alone[MASK], KNOWN.frames[MASK])


def test_what_lies_in_given_cells_of_x_and_in_unknown_cells_of_the_frames_is_not_read():
    put = MASK[..., None, None, None]
    denoise = lambda x, frames: toy()(PARAMS, x, jnp.full(2, 0.5), KNOWN._replace(frames=frames))  # noqa: E731
    expected = denoise(X, KNOWN.frames)
    np.testing.assert_array_equal(denoise(np.where(put, 9, X), jnp.where(put, KNOWN.frames, jnp.nan)), expected)


def test_missing_cells_see_sigma_1_and_invalid_pixels_of_given_cells_stay_as_they_are_in_x():
    spy, rng = spied(), np.random.default_rng(4)
    exists, valid = jnp.asarray(MASK | (rng.random(SHAPE[:3]) < 0.5)), jnp.asarray(rng.random(SHAPE[:5]) < 0.5)
    assert not exists.all()
    spy.denoiser(PARAMS, X, jnp.full(2, 0.3), KNOWN._replace(exists=exists, valid=valid))
    jax.effects_barrier()
    ((x, sigma, _),) = spy.seen
    np.testing.assert_array_equal(sigma, np.where(MASK, 0, np.where(exists, np.float32(0.3), 1)))
    put = (MASK[..., None, None] & np.asarray(valid))[..., None]
    np.testing.assert_array_equal(x, np.where(put, KNOWN.frames, X))


def central_difference(function, point: tuple, place: int, direction, step: float) -> float:
    """The slope of a function of several arguments as one of them moves along a direction."""

    def at(by: float) -> float:
        moved = jax.tree.map(lambda leaf, along: leaf + by * along, point[place], direction)
        return float(function(*point[:place], moved, *point[place + 1 :]))

    return (at(step) - at(-step)) / (2 * step)


@pytest.mark.slow
def test_it_is_differentiable_in_x_parameters_known_frames_and_conditions(tiny):
    """A real model: gradients equal central differences along a random direction, and are 0 at what is not read."""
    base, grid = tiny.config(hints=True, text_width=6, depth=1), GridDiTConfig("soft")
    denoiser, params = make_denoiser(base, grid), tiny.params(base, grid)
    text, weight = normal(2, 4, 6, seed=5), normal(*SHAPE, seed=6)

    @jax.jit
    def total(x, params, frames, text):
        return jnp.sum(weight * denoiser(params, x, jnp.full(2, 0.5), KNOWN._replace(frames=frames), {"text": text}))

    point = (jnp.asarray(X), params, KNOWN.frames, jnp.asarray(text))
    gradients = jax.jit(jax.grad(total, argnums=range(4)))(*point)
    rng = np.random.default_rng(7)
    for place, gradient in enumerate(gradients):
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), gradient)
        size = float(np.sqrt(sum(np.sum(d**2) for d in jax.tree.leaves(direction))))
        slope = central_difference(total, point, place, direction, 0.02 / size)
        expected = float(sum(np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)))
        # fp32: sums of 300 products are known to 1e-5, over a difference of 0.04 / |direction|
        assert slope == pytest.approx(expected, rel=0.02, abs=1e-3 * size)
        assert np.isfinite(expected) and max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 0.01
    put = np.broadcast_to(MASK[..., None, None, None], SHAPE)
    np.testing.assert_array_equal(np.asarray(gradients[0])[put], 0)
    np.testing.assert_array_equal(np.asarray(gradients[2])[~put], 0)


BAD = {
    "frames": (
        {"frames": jnp.zeros((2, 2, 4, 4, 4, 3))},
        r"known frames are \[2, 2, 4, 4, 4, 3\]: expected the grid's",
    ),
    "mask": ({"mask": jnp.zeros((2, 2), bool)}, r"known.mask is bool \[2, 2\]: expected bool \[2, 2, 3\]"),
    "float mask": ({"mask": jnp.zeros((2, 2, 3))}, "known.mask is float32"),
    "exists": ({"exists": jnp.ones((2, 2, 3), jnp.int32)}, "known.exists is int32"),
    "valid": ({"valid": jnp.ones((2, 2, 3, 4, 4, 1), bool)}, r"expected bool \[2, 2, 3, 4, 4\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_known_cells_that_do_not_fit_the_grid_are_refused_in_one_line(case):
    changes, text = BAD[case]
    with pytest.raises(UserError, match=text) as error:
        toy()(PARAMS, X, jnp.float32(0.5), KNOWN._replace(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "sigma", "text"),
    [
        (np.zeros(SHAPE, np.uint8), np.float32(0.5), "grid is uint8"),
        (X, np.ones(3, np.float32), r"sigma is \[3\]"),
        (X, np.ones((2, 2), np.float32), r"sigma is \[2, 2\]"),
        (X, np.int32(1), "sigma is int32"),
        (X[0], np.float32(0.5), "expected"),
    ],
)
def test_grids_and_noise_levels_that_do_not_fit_are_refused_in_one_line(x, sigma, text):
    with pytest.raises(UserError, match=text) as error:
        toy()(PARAMS, x, sigma, KNOWN._replace(frames=jnp.zeros(x.shape)))
    assert "\n" not in str(error.value)
