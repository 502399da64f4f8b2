"""Rectified flow: its identities, the distribution of noise levels, and the loss against a loop over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.diffusion import flow
from fourreal.grid import cell_sigma

CELLS = (2, 2, 3)
SHAPE = (*CELLS, 2, 2, 3)


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def data() -> dict:
    """x0, eps, sigma and the given cells, which the loss leaves out, of a batch of grids; sigma is 0 where given."""
    given = np.random.default_rng(1).random(CELLS) < 0.4
    assert given.any() and not given.reshape(2, -1).all(1).any()
    sigma = np.where(given, 0, np.random.default_rng(2).uniform(0.06, 1, CELLS)).astype(np.float32)
    return {"x0": normal(*SHAPE), "eps": normal(*SHAPE, seed=3), "sigma": sigma, "left_out": given}


def test_path_goes_from_frames_to_noise_and_the_velocity_is_its_derivative(data):
    x0, eps = data["x0"], data["eps"]
    np.testing.assert_array_equal(flow.interpolate(x0, eps, np.zeros(CELLS, np.float32)), x0)
    np.testing.assert_array_equal(flow.interpolate(x0, eps, np.ones(CELLS, np.float32)), eps)
    sigma = jnp.asarray(data["sigma"])
    _, slope = jax.jvp(lambda s: flow.interpolate(x0, eps, s), (sigma,), (jnp.ones_like(sigma),))
    np.testing.assert_allclose(slope, eps - x0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_a_perfect_output_gives_the_true_velocity_and_the_true_frames(data, prediction):
    x = flow.interpolate(data["x0"], data["eps"], data["sigma"])
    output = data["x0"] if prediction == "x0" else data["eps"] - data["x0"]
    unknown = ~data["left_out"]
    # dividing by sigma >= 0.06 magnifies the rounding of x (1e-7) by at most 17
    found = flow.velocity(output, x, data["sigma"], prediction)
    np.testing.assert_allclose(found[unknown], (data["eps"] - data["x0"])[unknown], atol=1e-5)
    np.testing.assert_allclose(flow.clean(output, x, data["sigma"], prediction), data["x0"], atol=1e-6)


def test_conversions_of_x0_and_u_are_inverse_above_the_floor(data):
    """For any output, right or wrong: clean(velocity(output) as u) = output."""
    x, output = normal(*SHAPE, seed=4), normal(*SHAPE, seed=5)
    u = flow.velocity(output, x, data["sigma"], "x0")
    unknown = ~data["left_out"]
    np.testing.assert_allclose(flow.clean(u, x, data["sigma"], "u")[unknown], output[unknown], atol=2e-6)


def test_velocity_of_an_x0_output_is_clamped_below_the_floor():
    x, output = normal(1, 2, 2, 3), normal(1, 2, 2, 3, seed=1)
    for sigma in (0.0, 0.01, 0.05):
        found = flow.velocity(output, x, jnp.full((1,), sigma), "x0")
        np.testing.assert_allclose(found, (x - output) / 0.05, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift_keeps_0_and_1_and_its_inverse_is_the_reciprocal_shift(shift):
    sigma = np.linspace(0, 1, 11, dtype=np.float32)
    shifted = flow.shift_sigma(sigma, shift)
    assert shifted[0] == 0 and shifted[-1] == 1 and (np.diff(shifted) > 0).all()
    np.testing.assert_allclose(flow.shift_sigma(shifted, 1 / shift), sigma, atol=1e-6)
    middle = shifted[1:-1] - sigma[1:-1]
    assert (middle > 0).all() if shift > 1 else (middle <= 0).all()


def test_shift_multiplies_the_odds_of_noise():
    sigma = np.float32([0.1, 0.5, 0.9])
    shifted = flow.shift_sigma(sigma, 3.0)
    np.testing.assert_allclose(shifted / (1 - shifted), 3 * sigma / (1 - sigma), rtol=1e-5)


def draws(config: flow.SigmaConfig) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), 20_000)
    return np.asarray(jax.jit(jax.vmap(lambda key: flow.sample_sigma(key, config)))(keys), np.float64)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_of_sigma_is_normal_with_the_mean_and_deviation_asked_for(shift):
    sigma = draws(flow.SigmaConfig(mean=0.8, std=0.7, shift=shift))
    logit = np.log(sigma / (1 - sigma))
    # five standard errors of 20,000 draws; the shift adds its logarithm
    assert abs(logit.mean() - 0.8 - np.log(shift)) < 5 * 0.7 / np.sqrt(20_000)
    assert abs(logit.std() - 0.7) < 5 * 0.7 / np.sqrt(40_000)
    assert abs(((logit - logit.mean()) ** 3).mean() / 0.7**3) < 5 * np.sqrt(6 / 20_000)  # no skew


def test_uniform_sigma_fills_ten_bins_equally():
    counts, _ = np.histogram(draws(flow.SigmaConfig(distribution="uniform")), bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(20_000 * 0.1 * 0.9)


def test_share_of_pure_noise_is_that_asked_for_and_leaves_the_other_draws_alone():
    usual, mixed = draws(flow.SigmaConfig()), draws(flow.SigmaConfig(pure=0.25))
    assert usual.max() < 1
    pure = mixed == 1
    assert abs(pure.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 20_000)
    np.testing.assert_array_equal(mixed[~pure], usual[~pure])
    # who is pure noise does not depend on the level drawn
    assert abs(usual[pure].mean() - usual.mean()) < 5 * usual.std() / np.sqrt(pure.sum())
    assert (draws(flow.SigmaConfig(pure=1.0)) == 1).all()


def test_draws_without_pure_noise_are_those_of_the_distribution():
    keys = jax.random.split(jax.random.key(0), 20_000)
    logit = 0.8 + 0.8 * np.asarray(jax.vmap(jax.random.normal)(keys), np.float64)
    np.testing.assert_allclose(draws(flow.SigmaConfig()), np.maximum(1 / (1 + np.exp(-logit)), 0.05), rtol=1e-5)


def loop_loss(output, x, x0, eps, sigma, left_out, valid, prediction) -> list[float]:
    """The loss pixel by pixel, in fp64."""
    losses = []
    for b in range(CELLS[0]):
        errors = []
        for v, t, h, w, c in np.ndindex(SHAPE[1:]):
            if left_out[b, v, t] or not valid[b, v, t, h, w]:
                continue
            at = (b, v, t, h, w, c)
            raw, level = float(output[at]), float(sigma[b, v, t])
            u = raw if prediction == "u" else (float(x[at]) - raw) / max(level, 0.05)
            errors.append((u - (float(eps[at]) - float(x0[at]))) ** 2)
        losses.append(sum(errors) / len(errors))
    return losses


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_loss_is_the_mean_over_each_examples_own_unknown_valid_pixels(data, prediction):
    x, output = flow.interpolate(data["x0"], data["eps"], data["sigma"]), normal(*SHAPE, seed=6)
    valid = np.random.default_rng(7).random(SHAPE[:-1]) < 0.7
    found = flow.flow_loss(output, x, **data, prediction=prediction, valid=valid)
    expected = loop_loss(output, x, **data, valid=valid, prediction=prediction)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    everywhere = loop_loss(output, x, **data, valid=np.ones_like(valid), prediction=prediction)
    np.testing.assert_allclose(flow.flow_loss(output, x, **data, prediction=prediction), everywhere, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["x0", "u"])
@pytest.mark.parametrize("most", [1.0, 5.0, 1e6])
def test_loss_with_a_largest_weight_is_the_weighted_squared_error_of_x0(data, prediction, most):
    """Mean over unknown valid pixels of min(1 / sigma^2, most) |x0hat - x0|^2, with x0hat = x - sigma u for prediction u."""
    x, output = flow.interpolate(data["x0"], data["eps"], data["sigma"]), normal(*SHAPE, seed=6)
    valid = np.random.default_rng(7).random(SHAPE[:-1]) < 0.7
    sigma, x0 = (np.asarray(data[name], np.float64) for name in ("sigma", "x0"))
    level = sigma[..., None, None, None]
    answer = output if prediction == "x0" else np.asarray(x, np.float64) - level * output
    unknown = valid & ~data["left_out"][..., None, None]
    weight = np.minimum(1 / np.maximum(level, 1e-9) ** 2, most)
    assert most != 5 or {0, 1} == {
        int(w == most) for w in weight[~data["left_out"]].ravel()
    }  # both sides of the minimum
    error = weight * (answer - x0) ** 2
    found = flow.flow_loss(output, x, **data, prediction=prediction, valid=valid, most=most)
    np.testing.assert_allclose(found, [error[b][unknown[b]].mean() for b in range(CELLS[0])], rtol=1e-5)
    if most == 1e6:
        plain = flow.flow_loss(output, x, **data, prediction=prediction, valid=valid)
        np.testing.assert_allclose(found, plain, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "u"])
@pytest.mark.parametrize(("huber", "most"), [(0.1, 5.0), (3.0, None)])
def test_pseudo_huber_loss_is_its_formula_of_the_error_of_x0(data, prediction, huber, most):
    x, output = flow.interpolate(data["x0"], data["eps"], data["sigma"]), normal(*SHAPE, seed=6)
    level = np.asarray(data["sigma"], np.float64)[..., None, None, None]
    error = (output if prediction == "x0" else np.asarray(x, np.float64) - level * output) - data["x0"]
    robust = 2 * huber**2 * (np.sqrt(1 + error**2 / huber**2) - 1)
    error = np.minimum(1 / np.maximum(level, 1e-9) ** 2, np.inf if most is None else most) * robust
    expected = [error[b][~data["left_out"][b]].mean() for b in range(CELLS[0])]
    found = flow.flow_loss(output, x, **data, prediction=prediction, most=most, huber=huber)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # fp32, of a mean over few pixels


def streams() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [b v t s d] of a view and a time stream, and a weight for every cell."""
    shape = (*CELLS, 4, 5)
    return normal(*shape), 3 * normal(*shape, seed=1), np.random.default_rng(2).random(CELLS).astype(np.float32)


def test_gap_of_two_streams_is_their_squared_distance_over_the_mean_of_their_squares():
    view, time, weight = streams()
    expected = np.zeros(CELLS)
    for cell in np.ndindex(CELLS):
        a, b = view[cell].astype(np.float64).ravel(), time[cell].astype(np.float64).ravel()
        expected[cell] = (a - b) @ (a - b) / ((a @ a + b @ b) / 2)
    for given in (1.0, weight):
        found = flow.stream_gap(view, time, given)
        np.testing.assert_allclose(found, (given * expected).mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(flow.stream_gap(view, view, 1.0), 0)
    np.testing.assert_allclose(flow.stream_gap(view, -view, 1.0), 4, rtol=1e-5)
    np.testing.assert_array_equal(flow.stream_gap(0 * view, 0 * time, 1.0), 0)  # and not nan


def test_gap_has_no_gradient_through_its_denominator():
    view, time, weight = streams()
    found = jax.grad(lambda *at: flow.stream_gap(*at, weight).sum(), argnums=(0, 1))(view, time)
    a, b = view.astype(np.float64), time.astype(np.float64)
    size = (a**2 + b**2).sum((-1, -2), keepdims=True) / 2
    slope = weight[..., None, None] * 2 * (a - b) / size / (CELLS[1] * CELLS[2])
    for gradient, expected in zip(found, (slope, -slope), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)
    # its values' own slope is another: growing streams would make the gap smaller
    ratio = ((a - b) ** 2).sum((-1, -2), keepdims=True) / size
    assert np.abs(slope - weight[..., None, None] * (2 * (a - b) - ratio * a) / size / 6).max() > 1e-3


def test_example_without_unknown_pixels_has_loss_0_and_a_finite_gradient(data):
    data = data | {"left_out": np.ones(CELLS, bool), "sigma": np.zeros(CELLS, np.float32)}
    loss, gradient = jax.value_and_grad(
        lambda output: flow.flow_loss(output, data["x0"], **data, prediction="x0").sum()
    )(jnp.asarray(normal(*SHAPE, seed=6)))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_given_cells_and_invalid_pixels_get_no_gradient_and_no_nan_reaches_the_others(data, prediction):
    """Invariant 5: given cells have sigma 0, where the velocity of an x0-model would divide by zero."""
    x, output = flow.interpolate(data["x0"], data["eps"], data["sigma"]), jnp.asarray(normal(*SHAPE, seed=6))
    valid = np.random.default_rng(7).random(SHAPE[:-1]) < 0.7

    def total(output, sigma):
        sigma = cell_sigma(sigma, data["left_out"])
        levels = data | {"sigma": sigma}
        return flow.flow_loss(output, x, **levels, prediction=prediction, valid=valid).sum()

    gradient, by_sigma = jax.grad(total, argnums=(0, 1))(output, jnp.asarray([0.3, 0.8]))
    silent = np.broadcast_to((data["left_out"][..., None, None] | ~valid)[..., None], SHAPE)
    assert np.isfinite(by_sigma).all() and np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[silent], 0)
    assert (np.asarray(gradient)[~silent] != 0).all()


def test_parts_of_a_batch_average_to_the_loss_of_the_whole(data):
    """Examples with few unknown cells weigh as much as others: halves of the batch give the same mean."""
    x, output = flow.interpolate(data["x0"], data["eps"], data["sigma"]), normal(*SHAPE, seed=6)
    whole = flow.flow_loss(output, x, **data, prediction="u").mean()
    parts = [
        flow.flow_loss(output[b : b + 1], x[b : b + 1], **{k: a[b : b + 1] for k, a in data.items()}, prediction="u")
        for b in range(2)
    ]
    assert data["left_out"][0].sum() != data["left_out"][1].sum()
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{"distribution": "cosine"}, {"std": 0.0}, {"shift": 0.0}, {"shift": -1.0}, {"pure": -0.1}, {"pure": 1.5}],
)
def test_noise_levels_that_cannot_be_drawn_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected|above 0|from 0 to 1"):
        flow.SigmaConfig(**changes)


@pytest.mark.parametrize("changes", [{"most": 0.0}, {"most": -1.0}, {"heads": -0.5}, {"gap": -0.5}])
def test_losses_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=rf"loss.{next(iter(changes))} is .*: give"):
        flow.LossConfig(**changes)
