"""Samplers against the exact flow of Gaussian data and against diffusers' schedulers.

For pixels x0 ~ N(m, s^2) and s_sigma^2 = (1 - sigma)^2 s^2 + sigma^2, the best model is known,
    E[x0 | x] = m + (1 - sigma) s^2 / s_sigma^2 (x - (1 - sigma) m),
and the flow's solution carries noise eps to m + s eps.

`tests/fixtures/make_sampler_fixture.py` made the fixture with diffusers.
"""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.diffusion.flow import SIGMA_FLOOR, shift_sigma
from fourreal.diffusion.samplers import Euler, Heun, Sampler, UniPC, integrate, noise_levels

SHAPE = (2, 3, 2, 2, 3)
MEAN, DEVIATION = 0.4, 0.3
SAMPLERS = pytest.mark.parametrize("sampler", [Euler(), Heun(), UniPC()], ids=lambda sampler: sampler.kind)
FIXTURE = dict(np.load(Path(__file__).parents[1] / "fixtures" / "samplers.npz"))
CASES = [name.removeprefix("sample/") for name in FIXTURE if name.startswith("sample/")]


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


NOISE, FRAMES = normal(*SHAPE), normal(*SHAPE, seed=1)
GIVEN = np.array([[True, False, True], [False, True, False]])


def posterior_mean(x, sigma, row):
    variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    return MEAN + (1 - sigma) * DEVIATION**2 / variance * (x - (1 - sigma) * MEAN)


@pytest.mark.parametrize(
    ("sampler", "order", "shift", "steps"),
    [
        (Euler(), 1, 1.0, 32),
        (Euler(), 1, 3.0, 32),
        (Heun(), 2, 1.0, 32),
        (Heun(), 2, 3.0, 32),
        # UniPC's steps are of order 3, with an error of the other sign; only the last one makes the whole order 2
        (UniPC(), 2, 1.0, 128),
        (UniPC(), 2, 3.0, 256),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_sampler_converges_to_the_exact_flow_with_its_order(sampler, order, shift, steps):
    def error(steps: int) -> float:
        out = integrate(posterior_mean, NOISE, noise_levels(steps, shift), sampler)
        return float(np.sqrt(np.mean((out - (MEAN + DEVIATION * NOISE)) ** 2)))

    errors = [error(steps * finer) for finer in (1, 2, 4)]
    # above fp32's floor, which is about 1e-6 here; the measured order nears the true one from either side
    assert errors[-1] > 5e-6
    assert np.diff(np.log2(errors)) == pytest.approx([-order, -order], abs=0.3)


@pytest.mark.parametrize("case", CASES)
def test_euler_and_unipc_give_the_samples_of_diffusers(case):
    def denoise(x, sigma, row):
        return x - sigma * (jnp.sin(2 * x) * (1 + sigma) - x / 2 + sigma**2)  # the fixture's velocity

    noise = FIXTURE["noise"].astype(np.float32)
    out = integrate(denoise, noise, FIXTURE[f"sigmas/{case}"], Sampler.named(case.split("/")[0])())
    # Ours rounds to fp32, 1.2e-7 of numbers up to 3, in up to 20 steps of a flow that spreads errors by a factor of a few.
    np.testing.assert_allclose(out, FIXTURE[f"sample/{case}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(("/5", "/20"))])
def test_spacing_of_diffusers_differs_from_ours_by_its_1000_training_steps_alone(case):
    """Given our even levels before the shift, diffusers has ours after it; UniPC starts at 1 - 1e-6 for a finite lambda.

    Of its own accord its UniPC spaces evenly from 1 to 1/1000, where we go to 0, and replaces the last one by 0. Its Euler adds
    0 instead, after a last evaluation at 1/1000, which is shifted twice.
    """
    kind, shift, spacing, steps = case.split("/")
    shift, steps = float(shift), int(steps)
    even = noise_levels(steps)
    if spacing == "theirs" and kind == "unipc":
        even = 1 - (1 - even) * (1 - 1 / 1000)
    if spacing == "theirs" and kind == "euler":
        even = np.linspace(1, shift_sigma(1 / 1000, shift), steps)
    expected = np.append(shift_sigma(even[:steps], shift), 0)
    np.testing.assert_allclose(FIXTURE[f"sigmas/{case}"], expected, atol=2e-6)
    if spacing == "even":
        np.testing.assert_allclose(FIXTURE[f"sigmas/{case}"], noise_levels(steps, shift), atol=2e-6)


def spied(sampler: Sampler, steps: int = 5) -> tuple[np.ndarray, list]:
    """The sample of a denoiser that returns the given frames, and what it saw: (x, sigma, row) of every evaluation."""
    seen = []

    def denoise(x, sigma, row):
        jax.debug.callback(lambda *a: seen.append([np.asarray(part) for part in a]), x, sigma, row, ordered=True)
        return jnp.where(GIVEN[..., None, None, None], FRAMES, 2 * jnp.sin(5 * x))

    out = integrate(denoise, NOISE, noise_levels(steps, 3.0), sampler)
    jax.effects_barrier()
    return np.asarray(out), seen


@SAMPLERS
def test_given_cell_goes_straight_from_its_noise_to_its_frame_and_ends_there_bit_for_bit(sampler):
    out, seen = spied(sampler)
    for x, sigma, _ in seen:
        np.testing.assert_allclose(x[GIVEN], ((1 - sigma) * FRAMES + sigma * NOISE)[GIVEN], atol=2e-6)
    np.testing.assert_array_equal(out[GIVEN], FRAMES[GIVEN])


@pytest.mark.parametrize(
    ("sampler", "evaluated"),
    [(Euler(), [1, 0.75, 0.5, 0.25]), (Heun(), [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]), (UniPC(), [1, 0.75, 0.5, 0.25])],
    ids=["euler", "heun", "unipc"],
)
def test_evaluations_are_numbered_and_at_the_levels_from_1_down_never_at_0(sampler, evaluated):
    seen = []

    def denoise(x, sigma, row):
        jax.debug.callback(lambda *a: seen.append(tuple(float(part) for part in a)), sigma, row, ordered=True)
        return x

    integrate(denoise, NOISE, noise_levels(4), sampler)
    jax.effects_barrier()
    assert seen == [(sigma, row) for row, sigma in enumerate(evaluated)]


@SAMPLERS
def test_last_update_returns_x0_itself(sampler):
    for steps in (1, 2, 6):
        out = integrate(lambda x, sigma, row: FRAMES * (1 + row), NOISE, noise_levels(steps), sampler)
        rows = 2 * steps - 1 if sampler == Heun() else steps
        np.testing.assert_array_equal(out, FRAMES * np.float32(rows))


@SAMPLERS
def test_program_holds_the_model_once_and_other_noise_compiles_nothing(sampler):
    calls = []
    chex.clear_trace_counter()

    def denoise(x, sigma, row):
        calls.append(x)
        return posterior_mean(x, sigma, row)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sample(noise):
        return integrate(denoise, noise, noise_levels(8), sampler)

    assert np.abs(sample(NOISE) - sample(FRAMES)).max() > 0.1
    assert len(calls) == 1


def test_stochastic_sampler_gets_another_key_at_every_row():
    class Stochastic(Euler):
        kind = "stochastic_of_a_test"

        def step(self, state, x0, row, key):
            return state._replace(x=state.x + jax.random.normal(key, state.x.shape))

    key, steps = jax.random.key(3), 3
    walk = integrate(lambda x, *_: x, NOISE, noise_levels(steps), Stochastic(), key) - NOISE
    drawn = [jax.random.normal(jax.random.fold_in(key, row), SHAPE) for row in range(steps)]
    np.testing.assert_allclose(walk, sum(drawn), atol=1e-5)


def test_levels_go_from_1_to_0_shifted_towards_noise():
    np.testing.assert_allclose(noise_levels(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(noise_levels(4, 3.0), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="expected at least 1"):
        noise_levels(0)
    with pytest.raises(ValueError, match="a floor from 0"):
        noise_levels(4, floor=1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_last_level_is_the_floor_where_it_would_be_below_it(shift):
    levels = noise_levels(100, shift, SIGMA_FLOOR)
    assert levels[-2] == np.float32(SIGMA_FLOOR) and levels[0] == 1 and levels[-1] == 0
    unshifted = levels[:-1] / (shift - (shift - 1) * levels[:-1])
    np.testing.assert_allclose(np.diff(unshifted), np.diff(unshifted)[0], rtol=1e-3)
    np.testing.assert_array_equal(noise_levels(4, shift, SIGMA_FLOOR), noise_levels(4, shift))
    np.testing.assert_array_equal(noise_levels(1, shift, SIGMA_FLOOR), [1, 0])


@pytest.mark.parametrize("levels", [[1.0], [1.0, 0.5, 0.5, 0.0], [0.0, 1.0], [1.5, 0.0], [1.0, -0.5], [np.nan, 0.0]])
def test_levels_that_do_not_fall_from_1_to_0_are_refused(levels):
    with pytest.raises(ValueError, match="expected at least two that fall"):
        integrate(posterior_mean, NOISE, np.array(levels), Euler())


def test_sampler_is_named_on_the_command_line_and_in_stored_configs():
    assert Sampler.from_text("unipc") == UniPC() and UniPC().to_text() == "unipc"
    with pytest.raises(ValueError, match="there is no sampler 'unpic': did you mean 'unipc'"):
        Sampler.from_text("unpic")
