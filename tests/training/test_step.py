"""One training step: what moves, what does not, and that it does what its parts say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fourreal.config import TrainConfig
from fourreal.data import cameras
from fourreal.diffusion import flow
from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, split_model
from fourreal.training.optimizer import OptimConfig, make_optimizer
from fourreal.training.state import fresh_state
from fourreal.training.step import batch_loss, example_keys, make_train_step

VIEWS, TIMES, BATCH = 2, 3, 2
GRID = GridDiTConfig("soft", "zero", "mean")


@functools.cache
def jitted_step(config: TrainConfig):
    return jax.jit(make_train_step(make_forward(split_model(config.model, config.grid)[0]), config))


@pytest.fixture
def config(tiny) -> TrainConfig:
    optim = OptimConfig(lr=0.01, warmup=0, ema=0.5)
    return TrainConfig("x", tiny.config(hints=True, depth=1), grid=GRID, optim=optim, steps=10)


@pytest.fixture
def state(tiny, config):
    return lambda config=config: fresh_state(jax.tree.map(jnp.asarray, tiny.params(config.model, GRID)), config)


@pytest.fixture(scope="module")
def batch() -> dict:
    rng = np.random.default_rng(0)
    given = np.zeros((BATCH, VIEWS, TIMES), bool)
    given[:, 0] = given[1, :, 0] = True
    return {"frames": rng.integers(0, 256, (BATCH, VIEWS, TIMES, 4, 4, 3), np.uint8), "given": given}


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("trains", ["all", "attention", "sync"])
def test_every_trained_leaf_moves_and_every_frozen_one_stays_bit_for_bit(config, state, batch, trains):
    config = dataclasses.replace(config, trains=trains)
    before = state(config)
    after = before
    for _ in range(2):
        after, _ = jitted_step(config)(after, batch)
    assert int(after["step"]) == 2
    assert equal(after["frozen"], before["frozen"]) and (trains == "all") == (not before["frozen"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(after["params"]):
        old = functools.reduce(lambda tree, key: tree[key.key], path, before["params"])
        assert not np.array_equal(leaf, old), path


def test_loss_of_a_step_is_that_of_its_own_noise_at_its_own_place(config, state, batch):
    """The noise and sigma of example i of step s, drawn again by hand, with the loss from the flow's parts."""
    start = state() | {"step": jnp.asarray(3, jnp.int32)}
    _, metrics = jitted_step(config)(start, batch)
    forward = make_forward(split_model(config.model, config.grid)[0])
    root = jax.random.key(config.seed)
    x, x0, eps, sigma = [], [], [], []
    for place in range(BATCH):
        keys = [
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, purpose), 3), place) for purpose in (0, 1)
        ]
        x0.append(batch["frames"][place] / 127.5 - 1)
        eps.append(jax.random.normal(keys[1], x0[-1].shape))
        sigma.append(np.where(batch["given"][place], 0, flow.sample_sigma(keys[0], config.sigma)))
        x.append(x0[-1] + sigma[-1][..., None, None, None] * (eps[-1] - x0[-1]))
    x, x0, eps, sigma = (np.stack(part).astype(np.float32) for part in (x, x0, eps, sigma))
    out = jax.jit(forward)(start["params"], x, sigma, batch["given"])
    error = (x - out) / np.maximum(sigma, 0.05)[..., None, None, None] - (eps - x0)
    expected = np.mean([np.mean(np.square(error[b][~batch["given"][b]])) for b in range(BATCH)])
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_average_after_a_step_is_its_formula(config, state, batch):
    before = state()
    after, _ = jitted_step(config)(before, batch)
    decay = min(0.5, (1 + 1) / (10 + 1))  # the first update
    expected = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, before["ema"], after["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after["ema"], expected)


def test_same_state_and_batch_give_the_same_step_bit_for_bit(config, state, batch):
    assert equal(jitted_step(config)(state(), batch), jitted_step(config)(state(), batch))


def test_noise_differs_between_steps_seeds_examples_and_purposes():
    draw = {}
    for seed, purpose, step in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        keys = example_keys(seed, purpose, jnp.asarray(step), 3)
        for place in range(3):
            draw[seed, purpose, step, place] = float(jax.random.normal(keys[place]))
    assert len(set(draw.values())) == 12


def test_noise_of_an_example_does_not_depend_on_the_batch_size():
    large, small = (jax.random.key_data(example_keys(0, 1, jnp.asarray(5), count)) for count in (8, 3))
    np.testing.assert_array_equal(large[:3], small)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_step_that_is_not_finite_changes_nothing_but_the_step_number(config, state, batch, broken):
    before = state()
    if broken == "loss":
        before["params"]["base"]["patch_embed"]["bias"] = jnp.full((24,), jnp.nan)
        step = jitted_step(config)
    else:  # sqrt has a finite value and an infinite slope at 0
        forward = make_forward(split_model(config.model, config.grid)[0])

        def sharp(params, *arguments, **conditions):
            return forward(params, *arguments, **conditions) + jnp.sqrt(0.0 * params["base"]["given"][0])

        step = jax.jit(make_train_step(sharp, config))
    after, metrics = step(before, batch)
    assert np.isfinite(metrics["loss"]) == (broken == "gradient") and not np.isfinite(metrics["grad_norm"])
    assert int(after["step"]) == 1
    for part in ("params", "ema", "opt", "frozen"):
        for new, old in zip(jax.tree.leaves(after[part]), jax.tree.leaves(before[part]), strict=True):
            np.testing.assert_array_equal(new, old)


def test_a_step_after_a_broken_one_goes_on_as_if_nothing_was(config, state, batch):
    """The optimizer's counters and moments are those of the last good step."""
    good, _ = jitted_step(config)(state(), batch)
    poisoned = good | {"params": jax.tree.map(lambda p: p * jnp.nan, good["params"])}
    broken, _ = jitted_step(config)(poisoned, batch)
    assert equal(broken["opt"], good["opt"]) and equal(broken["ema"], good["ema"])


def test_accumulated_parts_of_a_batch_make_the_update_of_the_whole(config, state, batch):
    """The loss is averaged over examples, whatever each one's number of unknown cells."""
    forward = make_forward(split_model(config.model, config.grid)[0])
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.1, 1, BATCH).astype(np.float32)
    eps = rng.normal(size=batch["frames"].shape).astype(np.float32)
    params = state()["params"]

    def update(optimizer, opt, params, frames, given, sigma, eps):
        gradient = jax.grad(lambda p: batch_loss(forward, p, frames, given, sigma, eps, "x0").mean())(params)
        updates, opt = optimizer.update(gradient, opt, params)
        return optax.apply_updates(params, updates), opt

    accumulating = make_optimizer(dataclasses.replace(config.optim, accumulate=BATCH), config.steps)
    part = jax.jit(functools.partial(update, accumulating))
    opt, moved = jax.jit(accumulating.init)(params), params
    for b in range(BATCH):
        moved, opt = part(opt, moved, *(array[b : b + 1] for array in (batch["frames"], batch["given"], sigma, eps)))
    whole = make_optimizer(config.optim, config.steps)
    whole_step = jax.jit(functools.partial(update, whole))
    expected, _ = whole_step(jax.jit(whole.init)(params), params, batch["frames"], batch["given"], sigma, eps)
    # Adam divides by the gradient's size, so one near zero may turn rounding into a part of the step of 0.01
    close = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)]
    assert max(close) < 2e-4, max(close)


def test_microbatches_make_the_step_of_the_whole_batch_with_less_memory(config, state, batch):
    """The gradients, which AdamW's first moment holds, and the loss are those of the same noise."""
    batch = {name: np.concatenate([value] * 3) for name, value in batch.items()}
    needs, steps = [], []
    for most in (None, 4, 1):  # all 6, parts of 3, the largest that divide 6, and of 1
        parts = dataclasses.replace(config, optim=dataclasses.replace(config.optim, microbatch=most))
        compiled = jitted_step(parts).lower(state(), batch).compile()
        needs.append(compiled.memory_analysis().temp_size_in_bytes)
        steps.append(compiled(state(), batch))
    (wanted, wanted_metrics), *others = steps
    for found, metrics in others:
        assert float(metrics["loss"]) == pytest.approx(float(wanted_metrics["loss"]), rel=1e-6)
        for leaf, other in zip(jax.tree.leaves(found["opt"]), jax.tree.leaves(wanted["opt"]), strict=True):
            # sums in another order: 1e-5 of a tensor's largest value
            np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert needs[0] > needs[1] > needs[2]


def test_given_cells_have_no_part_in_the_loss(config, state, batch):
    """Invariant 5: their output gets no gradient, and noise does not touch their frames."""
    seen = {}

    def spy(params, x, sigma, given):
        seen.update(x=x, sigma=sigma)
        return params

    frames, given = batch["frames"], batch["given"]
    output, eps = jnp.ones(frames.shape), jnp.full(frames.shape, 7.0)
    level = jnp.full((BATCH,), 0.5)
    slope = jax.grad(lambda o: batch_loss(spy, o, frames, given, level, eps, "x0").sum())(output)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(np.abs(slope).max(axis=(3, 4, 5)) > 0, ~given)
    batch_loss(spy, output, frames, given, level, eps, "x0")
    np.testing.assert_allclose(seen["x"][given], frames[given] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(seen["sigma"], np.where(given, 0, 0.5))


def test_cameras_teach_their_map_only_where_they_are_known(tiny, config, batch):
    model = tiny.config(hints=True, depth=1, cameras=True)
    config = dataclasses.replace(config, model=model)
    c2w = cameras.orbit_arc(np.zeros(3), 2.0, np.array([0.0, 30.0]), 10.0)
    poses = {"K": np.stack([[cameras.intrinsics(40, 4)] * VIEWS] * BATCH), "c2w": np.stack([c2w] * BATCH)}
    before = fresh_state(jax.tree.map(jnp.asarray, tiny.params(model, GRID)), config)
    for known, moves in ((False, False), (True, True)):
        told = batch | poses | {"cameras_known": np.full(BATCH, known)}
        after, metrics = jitted_step(config)(before, told)
        assert np.isfinite(float(metrics["loss"]))
        gradient = after["opt"]
        first_moments = [leaf for path, leaf in jax.tree.leaves_with_path(gradient) if "camera_embed" in str(path)]
        assert first_moments and all((np.abs(leaf).max() > 0) == moves for leaf in first_moments)


def test_latents_are_taken_as_they_are_and_pixels_as_numbers_from_minus_one_to_one(batch):
    frames, given, level = jnp.asarray(batch["frames"]), jnp.asarray(batch["given"]), jnp.full(BATCH, 0.5)
    eps = np.random.default_rng(0).normal(size=frames.shape).astype(np.float32)
    output = jnp.zeros(frames.shape)
    loss = jax.jit(lambda frames: batch_loss(lambda *_: output, {}, frames, given, level, eps, "x0"))
    of_pixels, of_latents = loss(frames), loss(np.asarray(frames) / np.float32(127.5) - 1)
    np.testing.assert_allclose(of_pixels, of_latents, rtol=1e-6)
