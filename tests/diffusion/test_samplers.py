"""Samplers against the exact flow of Gaussian data, and what they leave alone.

For pixels x0 ~ N(m, s^2) and s_sigma^2 = (1 - sigma)^2 s^2 + sigma^2, the best model is known,
    E[x0 | x] = m + (1 - sigma) s^2 / s_sigma^2 (x - (1 - sigma) m),
and the flow's solution carries noise eps to m + s eps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.diffusion.guidance import Guidance
from fourreal.diffusion.samplers import cell_noise, integrate, noise_levels, sample_grid

CELLS = (1, 2, 3)
SHAPE = (*CELLS, 2, 2, 3)
MEAN, DEVIATION = 0.4, 0.3


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NOISE, FRAMES = normal(*SHAPE), normal(*SHAPE, seed=1)
NONE = np.zeros(CELLS, bool)
SOME = np.array([[[True, False, True], [False, True, False]]])


def posterior_mean(x, sigma):
    variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    return MEAN + (1 - sigma) * DEVIATION**2 / variance * (x - (1 - sigma) * MEAN)


def gaussian_error(steps: int, method: str, shift: float = 1.0) -> float:
    out = jax.jit(lambda noise: integrate(posterior_mean, noise, FRAMES, NONE, noise_levels(steps, shift), method))(
        NOISE
    )
    return float(np.sqrt(np.mean((out - (MEAN + DEVIATION * NOISE)) ** 2)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_sampler_converges_to_the_exact_flow_with_its_order(method, order, shift):
    errors = [gaussian_error(steps, method, shift) for steps in (32, 64, 128)]
    # far above fp32's floor of about 1e-7 times the steps; the measured order nears the true one from either side
    assert errors[-1] > 1e-5
    assert np.diff(np.log2(errors)) == pytest.approx([-order, -order], abs=0.3)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("prediction", ["x0", "u"])
@pytest.mark.parametrize("steps", [1, 3])
def test_model_that_knows_the_truth_gives_the_truth(method, prediction, steps):
    truth = normal(*SHAPE, seed=2)

    def model(x, sigma, given):
        return truth if prediction == "x0" else (x - truth) / sigma.reshape(-1, 1, 1, 1, 1, 1)

    frames = np.where(SOME[..., None, None, None], truth, 0)
    out = sample_grid(model, frames, SOME, NOISE, noise_levels(steps), prediction, method=method)
    np.testing.assert_allclose(out, truth, atol=1e-5 if prediction == "u" else 0)


def spied(method: str, guidance: Guidance, steps: int = 4) -> tuple[np.ndarray, list]:
    """The sample and what the model saw: (x, sigma, given) of every evaluation, in order."""
    seen = []

    def model(x, sigma, given):
        jax.debug.callback(lambda *a: seen.append([np.asarray(part) for part in a]), x, sigma, given, ordered=True)
        return 5.0 * jnp.ones_like(x)  # it would move given cells far, were they not reset

    out = sample_grid(model, FRAMES, SOME, NOISE, noise_levels(steps), "x0", guidance, method)
    jax.effects_barrier()
    return np.asarray(out), seen


@pytest.mark.parametrize(("method", "evaluations"), [("euler", 4), ("heun", 7)])
def test_given_cells_are_clean_before_every_evaluation_and_at_the_end(method, evaluations):
    """Invariant 5."""
    out, seen = spied(method, Guidance())
    assert len(seen) == evaluations
    for x, _, given in seen:
        np.testing.assert_array_equal(given, SOME)
        np.testing.assert_array_equal(x[SOME], FRAMES[SOME])
        assert (x[~SOME] != FRAMES[~SOME]).all()
    np.testing.assert_array_equal(out[SOME], FRAMES[SOME])
    np.testing.assert_array_equal(out[~SOME], 5)  # the last step arrives at x0 itself


def test_unguided_branch_sees_given_cells_noised_on_their_straight_path():
    _, seen = spied("euler", Guidance(given=2.0))
    for x, sigma, given in seen:
        assert not given[:1].any() and (given[1:] == SOME).all()
        level = sigma[0]
        np.testing.assert_allclose(x[:1][SOME], ((1 - level) * FRAMES + level * NOISE)[SOME], atol=1e-6)
        np.testing.assert_array_equal(x[:1][~SOME], x[1:][~SOME])


def test_evaluations_are_at_the_levels_from_1_down_and_never_at_0():
    _, seen = spied("euler", Guidance())
    np.testing.assert_allclose([sigma[0] for _, sigma, _ in seen], [1, 0.75, 0.5, 0.25])
    _, seen = spied("heun", Guidance())
    np.testing.assert_allclose([sigma[0] for _, sigma, _ in seen], [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25])


def test_levels_go_from_1_to_0_shifted_towards_noise():
    np.testing.assert_allclose(noise_levels(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(noise_levels(4, 3.0), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="expected at least 1"):
        noise_levels(0)


def test_noise_of_a_cell_does_not_depend_on_the_grids_size():
    large, small = cell_noise(3, 4, 5, (2, 2, 3)), cell_noise(3, 2, 3, (2, 2, 3))
    np.testing.assert_array_equal(large[:2, :3], small)


def test_noise_is_normal_and_differs_between_cells_and_seeds():
    noise = np.asarray(cell_noise(3, 4, 5, (16, 16, 3)))
    cells = noise.reshape(20, -1)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    correlation = np.corrcoef(cells) - np.eye(20)
    assert np.abs(correlation).max() < 6 / np.sqrt(768)
    assert np.abs(noise - cell_noise(4, 4, 5, (16, 16, 3))).mean() > 0.5


def test_clips_are_sampled_like_grids():
    given = np.array([[True, False, False]])
    out = sample_grid(
        lambda x, sigma, given: 5.0 * jnp.ones_like(x), FRAMES[:, 0], given, NOISE[:, 0], noise_levels(3), "x0"
    )
    np.testing.assert_array_equal(out[0, 0], FRAMES[0, 0, 0])
    np.testing.assert_array_equal(out[0, 1:], 5)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="expected one of euler, heun"):
        integrate(posterior_mean, NOISE, FRAMES, NONE, noise_levels(2), "rk4")
