"""The optimizer: what decays, the schedule, accumulation, and the average of the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from fourreal.models import GridDiTConfig
from fourreal.models.build import model_table, split_model
from fourreal.training.optimizer import OptimConfig, learning_rate, make_optimizer, update_average

PARAMS = {"kernel": jnp.arange(1.0, 5.0), "bias": jnp.ones(2)}


def gradient(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for name, value in PARAMS.items()}


@pytest.mark.slow
def test_weight_decay_shrinks_kernels_and_nothing_else(tiny):
    """With no gradient, a step of AdamW is the decay alone: -lr * decay * kernel."""
    params = tiny.params(tiny.config(hints=True, text_width=10), GridDiTConfig("soft"))
    optimizer = make_optimizer(OptimConfig(lr=0.1, warmup=0, weight_decay=0.5), steps=10)

    @jax.jit
    def update(params):
        return optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]

    updates = update(params)
    flat, moved = traverse_util.flatten_dict(params), traverse_util.flatten_dict(updates)
    assert {path[-1] for path in flat} == {"kernel", "bias", "scale", "modulation", "table", "vector"}
    for path, update in moved.items():
        expected = -0.1 * 0.5 * flat[path] if path[-1] == "kernel" else np.zeros_like(flat[path])
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=".".join(path))


def test_muon_moves_the_layers_matrices_by_an_orthogonal_step_and_adamw_the_rest(tiny):
    """In one step the momentum is the gradient, and the step 0.2 sqrt(max(in, out)) times its polar factor."""
    params = tiny.params(tiny.config(), GridDiTConfig("soft"))
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=np.shape(x)), jnp.float32), params)
    settings = OptimConfig(lr=0.1, warmup=0, weight_decay=0.0, clip=1e9)
    steps = {}
    for kind in ("muon", "adamw"):
        optimizer = make_optimizer(dataclasses.replace(settings, kind=kind), steps=10)

        @jax.jit
        def update(gradients, params, optimizer=optimizer):
            return optimizer.update(gradients, optimizer.init(params), params)[0]

        steps[kind] = traverse_util.flatten_dict(update(gradients, params))
    matrices = [
        path
        for path, x in steps["muon"].items()
        if path[-1] == "kernel" and path[:2] != ("base", "conditions") and x.ndim > 2
    ]
    assert {path[0] for path in matrices} == {"base", "sync"} and len(matrices) > 5
    flat = traverse_util.flatten_dict(gradients)
    for path, step in steps["muon"].items():
        if path not in matrices:
            np.testing.assert_array_equal(step, steps["adamw"][path], err_msg=".".join(path))
            continue
        for layer, gradient in zip(np.asarray(step), np.asarray(flat[path]), strict=True):
            # of sync: from (stream, d) to (output, d)
            shape = gradient.shape if gradient.ndim == 2 else (np.prod(gradient.shape[:2]), np.prod(gradient.shape[2:]))
            left, values, right = np.linalg.svd(gradient.reshape(shape), full_matrices=False)
            polar = -layer.reshape(shape) / (0.1 * 0.2 * max(shape) ** 0.5)
            values = values / np.linalg.norm(values)
            for _ in range(5):  # Newton and Schulz, on the singular values
                values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
            # fp32 products of 24 to 96 numbers, five times over
            np.testing.assert_allclose(polar, left * values @ right, atol=1e-4, err_msg=".".join(path))


def test_learning_rate_rises_to_its_peak_and_falls_on_a_cosine():
    schedule = learning_rate(OptimConfig(lr=2.0, warmup=10, final_lr=0.1), steps=110)
    assert [float(schedule(n)) for n in (0, 5, 10)] == pytest.approx([2 / 11, 12 / 11, 2])  # the first step moves, too
    assert float(schedule(60)) == pytest.approx(1.1)  # half way between 2 and 0.2
    assert float(schedule(110)) == pytest.approx(0.2)


def test_schedule_counts_updates_where_gradients_are_accumulated():
    schedule = learning_rate(OptimConfig(lr=2.0, warmup=10, accumulate=5), steps=100)
    assert float(schedule(2)) == pytest.approx(2.0) and float(schedule(20)) == pytest.approx(0.04)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_runs_shorter_than_their_warm_up_have_a_schedule(steps):
    schedule = learning_rate(OptimConfig(warmup=50), steps)
    assert all(np.isfinite(float(schedule(n))) for n in range(steps + 1))


def test_gradient_is_clipped_to_the_largest_norm():
    config = OptimConfig(lr=0.1, warmup=0, clip=0.2)
    optimizer = make_optimizer(config, 10)
    large, state = gradient(0), optimizer.init(PARAMS)
    norm = optax.global_norm(large)
    assert norm > 0.5
    cut = jax.tree.map(lambda g: g * 0.2 / norm, large)
    # Adam forgets a gradient's size, so clipping shows in its moments
    moments = optax.tree.get(optimizer.update(large, state, PARAMS)[1], "mu")
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * g, rtol=1e-5), moments, cut)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learning_rate_of_the_sync_layers_scales_their_updates_and_no_others(tiny, accumulate):
    """Of the sync layers and the projection of sigma, also their decay."""
    model, grid = tiny.config(hints=True), GridDiTConfig("soft")
    flat, rng = traverse_util.flatten_dict(split_model(model, grid)[1]), np.random.default_rng(0)
    flat = {
        path: rng.normal(size=value.shape).astype(np.float32)
        for path, value in flat.items()
        if path[0] != "base" or path[1] == "given" or path[1:3] == ("head", "out")
    }
    params = traverse_util.unflatten_dict(flat)
    gradients = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    usual = OptimConfig(lr=0.1, warmup=0, weight_decay=0.5, accumulate=accumulate)

    def moved(config: OptimConfig, table: dict) -> dict:
        optimizer = make_optimizer(config, 20, table)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(2 * accumulate):
            updates, state = update(gradients, state, params)
        return traverse_util.flatten_dict(updates)

    table = model_table(model, grid)
    one, other = moved(usual, {}), moved(dataclasses.replace(usual, sync_lr=0.02), table)
    sync = {path for path in one if path[0] in ("sync", "sigma_projection")}
    assert {path[0] for path in one} == {"base", "sync", "sigma_projection"}
    for path, update in one.items():
        assert np.abs(update).max() > 0
        if path in sync:
            np.testing.assert_allclose(other[path], 0.2 * update, rtol=1e-6, err_msg=".".join(path))
        else:
            np.testing.assert_array_equal(other[path], update, err_msg=".".join(path))


def test_accumulated_gradients_make_the_update_of_their_mean():
    config = OptimConfig(lr=0.1, warmup=0, accumulate=3)
    optimizer, big = make_optimizer(config, 30), make_optimizer(OptimConfig(lr=0.1, warmup=0), 10)
    state, params = optimizer.init(PARAMS), PARAMS
    for seed in range(3):
        before = params
        updates, state = optimizer.update(gradient(seed), state, params)
        params = optax.apply_updates(params, updates)
        if seed < 2:
            jax.tree.map(np.testing.assert_array_equal, params, before)  # nothing moves before the last part
    mean = jax.tree.map(lambda *g: sum(g) / 3, *map(gradient, range(3)))
    updates, _ = big.update(mean, big.init(PARAMS), PARAMS)
    expected = optax.apply_updates(PARAMS, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_average_follows_its_formula_at_every_update(accumulate):
    """decay = min(0.9, (1 + n) / (10 + n)) at the n-th update; between updates the average rests."""
    config, rng = OptimConfig(ema=0.9, accumulate=accumulate), np.random.default_rng(0)
    average, expected, updates = {"x": jnp.asarray(1.0)}, 1.0, 0
    for step in range(120):
        value = rng.normal()
        average = update_average(average, {"x": jnp.asarray(value, jnp.float32)}, jnp.asarray(step), config)
        if (step + 1) % accumulate == 0:
            updates += 1
            decay = min(0.9, (1 + updates) / (10 + updates))
            expected = decay * expected + (1 - decay) * value
        assert float(average["x"]) == pytest.approx(expected, abs=1e-6)
    assert accumulate > 1 or (1 + updates) / (10 + updates) > 0.9  # both sides of the minimum were seen


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.0},
        {"sync_lr": 0.0},
        {"clip": -1.0},
        {"ema": 1.5},
        {"beta2": -0.1},
        {"accumulate": 0},
        {"microbatch": 0},
        {"warmup": -1},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match="give"):
        OptimConfig(**changes)
