"""`Stage`: what a model sees along a whole sample, and what comes back of the given cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_denoiser import PARAMS, normal, spied, toy

from fourreal.diffusion.flow import SIGMA_FLOOR
from fourreal.diffusion.guidance import scale_branches
from fourreal.diffusion.samplers import Euler, Heun, UniPC
from fourreal.diffusion.stage import Stage
from fourreal.grid import Known

CELLS = (1, 2, 3)
SHAPE = (*CELLS, 2, 2, 3)
NOISE, FRAMES = normal(*SHAPE), normal(*SHAPE, seed=1)
SOME = np.array([[[True, False, True], [False, True, False]]])
SAMPLERS = pytest.mark.parametrize("sampler", [Euler(), Heun(), UniPC()], ids=lambda sampler: sampler.kind)


def five(x, sigma, given, conditions, cells):
    return 5.0 * jnp.ones_like(x)  # it would move given cells far, were they not put in


@SAMPLERS
@pytest.mark.parametrize("prediction", ["x0", "u"])
@pytest.mark.parametrize("steps", [1, 3])
def test_model_that_knows_the_truth_gives_the_truth(sampler, prediction, steps):
    truth = normal(*SHAPE, seed=2)

    def knows(x, sigma, given, conditions, cells):
        return truth if prediction == "x0" else (x - truth) / jnp.maximum(sigma, 1e-6)[..., None, None, None]

    known = Known(np.where(SOME[..., None, None, None], truth, 0), jnp.asarray(SOME))
    stage = Stage(toy(knows, prediction=prediction), sampler=sampler)
    out = stage.integrate(PARAMS, known, NOISE, steps=steps)
    np.testing.assert_allclose(out, truth, atol=1e-5)


@SAMPLERS
def test_given_cells_are_clean_before_every_evaluation_and_at_the_end(sampler):
    """Invariant 5."""
    spy = spied(five)
    out = Stage(spy.denoiser, sampler=sampler).integrate(PARAMS, Known(FRAMES, jnp.asarray(SOME)), NOISE, steps=4)
    jax.effects_barrier()
    assert len(spy.seen) == (7 if sampler == Heun() else 4)
    for x, sigma, given in spy.seen:
        np.testing.assert_array_equal(given, SOME)
        np.testing.assert_array_equal(x[SOME], FRAMES[SOME])
        np.testing.assert_array_equal(sigma[SOME], 0)
        assert (x[~SOME] != FRAMES[~SOME]).all() and (sigma[~SOME] >= SIGMA_FLOOR).all()
    np.testing.assert_array_equal(np.asarray(out)[SOME], FRAMES[SOME])
    np.testing.assert_array_equal(np.asarray(out)[~SOME], 5)  # the last step arrives at x0 itself


@SAMPLERS
def test_unguided_branch_sees_given_cells_on_the_straight_path_from_their_noise(sampler):
    spy = spied(five)
    branches, weights = scale_branches(2.0)
    Stage(spy.denoiser, sampler=sampler).integrate(
        PARAMS, Known(FRAMES, jnp.asarray(SOME)), NOISE, steps=4, branches=branches, weights=weights
    )
    jax.effects_barrier()
    for x, sigma, given in spy.seen:
        assert not given[:1].any() and (given[1:] == SOME).all()
        level = sigma[0].max()
        np.testing.assert_allclose(x[:1][SOME], ((1 - level) * FRAMES + level * NOISE)[SOME], atol=2e-6)
        np.testing.assert_array_equal(x[:1][~SOME], x[1:][~SOME])


def test_weights_may_change_with_every_evaluation():
    """Constant answers: 5 without the given cells, 3 with them; the last evaluation's weights decide the answer."""

    def by_mask(x, sigma, given, conditions, cells):
        return jnp.where(given.any((1, 2)), 3.0, 5.0)[:, None, None, None, None, None] * jnp.ones_like(x)

    branches, _ = scale_branches(2.0)
    weights = jnp.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 2.0]])
    out = Stage(toy(by_mask)).integrate(
        PARAMS, Known(FRAMES, jnp.asarray(SOME)), NOISE, steps=3, branches=branches, weights=weights
    )
    np.testing.assert_allclose(np.asarray(out)[~SOME], 2 * 3 - 5, atol=1e-6)


def test_frames_come_back_as_pixels_and_numbers_that_are_not_finite_are_told():
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2, *SHAPE[1:]), np.uint8)
    given = jnp.asarray(np.concatenate([SOME, SOME]))

    def broken(x, sigma, given, conditions, cells):
        return jnp.where(jnp.arange(2)[:, None, None, None, None, None] == 1, jnp.nan, jnp.zeros_like(x))

    noise = np.concatenate([NOISE, NOISE])
    out, finite = Stage(toy(broken))(PARAMS, {}, pixels, given, noise, steps=2)
    assert out.dtype == np.uint8 and finite.tolist() == [True, False]
    np.testing.assert_array_equal(np.asarray(out)[0][SOME[0]], pixels[0][SOME[0]])
