"""One training step: what moves, what does not, and that it does what its parts say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scenes_in_memory import Pooling

from fourreal.conditions import Hints
from fourreal.conditions.condition import complete
from fourreal.diffusion import flow
from fourreal.diffusion.denoiser import Denoiser, make_denoiser
from fourreal.geometry import pinhole as cameras
from fourreal.grid import Known, to_unit
from fourreal.metrics.lpips import make_lpips
from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, split_model
from fourreal.models.fusions import Probe
from fourreal.scene import Cameras
from fourreal.training import step as module
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig, make_optimizer
from fourreal.training.state import fresh_state
from fourreal.training.step import batch_loss, example_keys, make_train_step, mean_lpips

VIEWS, TIMES, BATCH = 2, 3, 2
GRID = GridDiTConfig("soft", "zero", "mean")


@functools.cache
def denoiser_of(config: TrainConfig) -> Denoiser:
    return make_denoiser(config.model, config.grid)


@functools.cache
def jitted_step(config: TrainConfig):
    return jax.jit(make_train_step(denoiser_of(config), config))


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


@pytest.mark.slow
@pytest.mark.parametrize("trains", ["all", "attention", "sync", "sync_and_conditions"])
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
    forward = make_forward(split_model(config.model, config.grid)[0])  # with hints of its own
    root = jax.random.key(config.seed)

    @jax.jit
    def draw(place):
        keys = [
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, purpose), 3), place) for purpose in (0, 1)
        ]
        return flow.sample_sigma(keys[0], config.sigma), jax.random.normal(keys[1], batch["frames"].shape[1:])

    x, x0, eps, sigma = [], [], [], []
    for place in range(BATCH):
        level, noise = draw(place)
        x0.append(batch["frames"][place] / 127.5 - 1)
        eps.append(noise)
        sigma.append(np.where(batch["given"][place], 0, level))
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


@pytest.mark.parametrize("broken", ["loss", "gradient", "update"])
def test_step_that_is_not_finite_changes_nothing_but_the_step_number(config, state, batch, broken):
    before = state()
    if broken == "loss":
        before["params"]["base"]["patch_embed"]["bias"] = jnp.full((24,), jnp.nan)
        step = jitted_step(config)
    elif broken == "update":
        step = jitted_step(dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=1e38, warmup=0)))
    else:  # sqrt has a finite value and an infinite slope at 0

        class Sharp(Denoiser):
            def output(self, params, *arguments):
                output, *seen = super().output(params, *arguments)
                return output + jnp.sqrt(0.0 * params["base"]["given"]["vector"][0]), *seen

        denoiser = denoiser_of(config)
        sharp = Sharp(denoiser.graph, denoiser.prediction, denoiser.conditions)
        step = jax.jit(make_train_step(sharp, config))
    after, metrics = step(before, batch)
    finite = [bool(np.isfinite(metrics[name])) for name in ("loss", "grad_norm", "update_norm")]
    assert finite == {"loss": [False] * 3, "gradient": [True, False, False], "update": [True, True, False]}[broken]
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


@pytest.mark.slow
def test_accumulated_parts_of_a_batch_make_the_update_of_the_whole(config, state, batch):
    """The loss is averaged over examples, whatever each one's number of unknown cells."""
    denoiser, rng = denoiser_of(config), np.random.default_rng(1)
    examples = {
        "x0": rng.normal(size=batch["frames"].shape).astype(np.float32),
        "given": batch["given"],
        "sigma": rng.uniform(0.1, 1, BATCH).astype(np.float32),
        "eps": rng.normal(size=batch["frames"].shape).astype(np.float32),
    }
    params = state()["params"]

    def update(optimizer, opt, params, examples):
        def loss(params):
            return batch_loss(denoiser, params, examples["x0"], examples, examples["sigma"], examples["eps"]).mean()

        updates, opt = optimizer.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    accumulating = make_optimizer(dataclasses.replace(config.optim, accumulate=BATCH), config.steps)
    part = jax.jit(functools.partial(update, accumulating))
    opt, moved = jax.jit(accumulating.init)(params), params
    for b in range(BATCH):
        moved, opt = part(opt, moved, {name: array[b : b + 1] for name, array in examples.items()})
    whole = make_optimizer(config.optim, config.steps)
    expected, _ = jax.jit(functools.partial(update, whole))(jax.jit(whole.init)(params), params, examples)
    # Adam divides by the gradient's size, so one near zero may turn rounding into a part of the step of 0.01
    close = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True)]
    assert max(close) < 2e-4, max(close)


@pytest.fixture
def parts(tiny) -> dict:
    return parts_of(TrainConfig("x", tiny.config(), grid=GRID), tiny.params)


@functools.cache
def parts_of(config: TrainConfig, make_params) -> dict:
    """A soft model of two layers, a batch at its noise levels, and of the model on it: every head and the streams."""
    denoiser, rng = denoiser_of(config), np.random.default_rng(3)
    params = jax.tree.map(jnp.asarray, make_params(config.model, GRID))
    x0, eps = rng.normal(size=(2, BATCH, VIEWS, TIMES, 4, 4, 3)).astype(np.float32)
    given, level = np.zeros((BATCH, VIEWS, TIMES), bool), np.array([0.2, 0.7], np.float32)
    given[:, 0] = given[1, :, 0] = True
    sigma = np.where(given, np.float32(0), level[:, None, None])
    x = x0 + sigma[..., None, None, None] * (eps - x0)

    @jax.jit
    def run(params):
        model = nnx.merge(denoiser.graph, nnx.State(params))
        return model.heads(x, sigma, given, {}, probe=Probe(observe=lambda streams: streams))

    heads, streams = jax.device_get(run(params))
    examples = {"given": given}
    jitted = jax.jit(
        lambda params, loss: batch_loss(denoiser, params, x0, examples, level, eps, loss), static_argnums=1
    )
    loss_of = functools.partial(jitted, params)
    return {
        "x0": x0,
        "given": given,
        "sigma": sigma,
        "level": level,
        "heads": heads,
        "streams": streams,
        "loss": loss_of,
    }


def head_loss(parts: dict, output: np.ndarray, most: float | None) -> np.ndarray:
    """Of an answer x0hat: mean over each example's unknown cells of min(1 / sigma^2, most) |x0hat - x0|^2."""
    weight = np.minimum(1 / parts["level"].astype(np.float64) ** 2, np.inf if most is None else most)
    error = (output.astype(np.float64) - parts["x0"]) ** 2
    return np.array([weight[b] * error[b][~parts["given"][b]].mean() for b in range(BATCH)])


def gaps(parts: dict) -> np.ndarray:
    """Of every layer and cell [l, b, v, t], the streams' squared distance over the mean of their squares."""
    a, b = (parts["streams"][name].astype(np.float64) for name in ("view", "time"))
    return ((a - b) ** 2).sum((-1, -2)) / ((a**2 + b**2).sum((-1, -2)) / 2)


@pytest.mark.parametrize("most", [None, 5.0])
def test_loss_of_the_heads_is_the_mean_of_each_streams_own_beside_that_of_the_readout(parts, most):
    assert set(parts["heads"]) == {"view", "time"}
    own = [head_loss(parts, head, most) for head in parts["heads"].values()]
    readout = head_loss(parts, sum(parts["heads"].values()) / 2, most)
    assert not np.allclose(own[0], own[1], rtol=0.01) and (readout < np.mean(own, axis=0)).all()
    found = parts["loss"](flow.LossConfig(most=most, heads=0.5))
    np.testing.assert_allclose(found, readout + 0.5 * np.mean(own, axis=0), rtol=1e-4)


def test_lpips_of_a_batch_is_the_mean_over_unknown_cells_and_has_a_gradient():
    rng = np.random.default_rng(0)
    answer, truth = rng.integers(0, 256, (2, 2, 2, 3, 32, 32, 3), np.uint8)
    left_out = np.zeros((2, 2, 3), bool)
    left_out[0, 0] = left_out[1] = True
    each = make_lpips("alex")(answer[0, 1], truth[0, 1])
    unit = [np.float32(x) / np.float32(127.5) - 1 for x in (answer, truth)]
    np.testing.assert_allclose(mean_lpips(*unit, left_out), [each.mean(), 0], rtol=1e-5)
    slope = jax.grad(lambda x: mean_lpips(x, unit[1], left_out).sum())(unit[0])
    assert np.isfinite(slope).all() and np.any(slope[0, 1]) and not np.any(slope[left_out])


def test_lpips_is_added_with_its_weight(parts, monkeypatch):
    """Of an answer; its own network has a test of its own, and needs larger frames than these."""
    monkeypatch.setattr(module, "distance", lambda network, weights, x, y: jnp.abs(x - y).sum(axis=(1, 2, 3)))
    output = sum(parts["heads"].values()) / 2
    far = np.abs(output - parts["x0"]).sum(axis=(3, 4, 5))
    expected = head_loss(parts, output, None) + 0.1 * np.array(
        [far[b][~parts["given"][b]].mean() for b in range(BATCH)]
    )
    np.testing.assert_allclose(parts["loss"](flow.LossConfig(lpips=0.1)), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["even", "depth", "clean"])
def test_loss_of_the_gap_is_the_mean_over_layers_and_cells_with_its_weight(parts, kind):
    of_cells = gaps(parts)
    assert of_cells.shape == (2, BATCH, VIEWS, TIMES) and of_cells.min() > 0.01
    weight = {"even": 1, "depth": np.array([0.5, 1])[:, None, None, None], "clean": 1 - parts["sigma"]}[kind]
    gap = (weight * of_cells).mean((0, 2, 3))
    readout = head_loss(parts, sum(parts["heads"].values()) / 2, None)
    own = np.mean([head_loss(parts, head, None) for head in parts["heads"].values()], axis=0)
    found = parts["loss"](flow.LossConfig(heads=0.5, gap=3.0, gap_weight=kind))
    np.testing.assert_allclose(found, readout + own / 2 + 3 * gap, rtol=1e-4)


def test_gap_of_a_fusion_without_two_streams_is_refused(tiny):
    for fusion in ("sequential", "fused"):
        with pytest.raises(ValueError, match=r"loss.gap is 0.1 with grid.fusion .*: it is the distance of two streams"):
            TrainConfig("x", tiny.config(), grid=GridDiTConfig(fusion), loss=flow.LossConfig(gap=0.1))


@pytest.fixture
def told(tiny, config, batch) -> tuple[TrainConfig, dict, dict]:
    """A model with cameras, its fresh state, and the batch with cameras."""
    model = tiny.config(hints=True, depth=1, cameras=True)
    config = dataclasses.replace(config, model=model)
    c2w = cameras.orbit_arc(np.zeros(3), 2.0, np.array([0.0, 30.0]), 10.0).astype(np.float32)
    K = np.tile(cameras.intrinsics(40, 4).astype(np.float32), (BATCH, VIEWS, 1, 1))
    poses = Cameras(K, np.stack([c2w] * BATCH), known=np.ones(BATCH, bool), reference=np.array([0, 1], np.int32))
    batch = batch | {"conditions": {"cameras": poses}, "dropped": {"cameras": np.array([False, True])}}
    return config, fresh_state(jax.tree.map(jnp.asarray, tiny.params(model, GRID)), config), batch


@pytest.mark.slow
def test_microbatches_make_the_step_of_the_whole_batch_with_less_memory(told):
    """The gradients, which AdamW's first moment holds, and the loss are those of the same noise."""
    config, before, batch = told
    batch = jax.tree.map(lambda value: np.concatenate([value] * 3), batch)
    needs, steps = [], []
    for most in (None, 4, 1):  # all 6, parts of 3, the largest that divide 6, and of 1
        parts = dataclasses.replace(config, optim=dataclasses.replace(config.optim, microbatch=most))
        compiled = jitted_step(parts).lower(before, batch).compile()
        needs.append(compiled.memory_analysis().temp_size_in_bytes)
        steps.append(compiled(before, batch))
    (wanted, wanted_metrics), *others = steps
    for found, metrics in others:
        assert float(metrics["loss"]) == pytest.approx(float(wanted_metrics["loss"]), rel=1e-6)
        for leaf, other in zip(jax.tree.leaves(found["opt"]), jax.tree.leaves(wanted["opt"]), strict=True):
            # sums in another order: 1e-5 of a tensor's largest value
            np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert needs[0] > needs[1] > needs[2]


@dataclasses.dataclass(frozen=True)
class Added(Denoiser):
    """Adds params["added"] to the model's output, and notes the x and the noise levels that the model sees."""

    seen: list = dataclasses.field(default_factory=list)

    def output(self, params, *arguments):
        output, x, level = super().output(params["model"], *arguments)
        self.seen.extend([x, level])
        return output + params["added"], x, level


@pytest.fixture(scope="module")
def examine():
    """(loss [b], its gradients by the output, x0 and eps, the model's x, its noise levels) of a batch of latents."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, params, x0, examples, sigma, eps):
        denoiser = denoiser_of(config)

        def total(added, x0, eps):
            spy = Added(denoiser.graph, denoiser.prediction, denoiser.conditions)
            loss = batch_loss(spy, {"model": params, "added": added}, x0, examples, sigma, eps)
            return loss.sum(), (loss, *spy.seen)

        gradients = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
        slopes, (loss, x, level) = gradients(jnp.zeros(x0.shape), x0, eps)
        return loss, slopes, x, level

    return run


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def test_given_cells_have_no_part_in_the_loss(config, state, batch, examine):
    """Invariant 5: their output gets no gradient, and noise does not touch their frames."""
    x0, given = np.asarray(to_unit(batch["frames"])), batch["given"]
    level, eps = np.full((BATCH,), 0.5, np.float32), noise(x0.shape)
    _, (by_output, _, by_eps), x, sigma = examine(config, state()["params"], x0, {"given": given}, level, eps)
    assert np.isfinite(by_output).all()
    np.testing.assert_array_equal(np.abs(by_output).max(axis=(3, 4, 5)) > 0, ~given)
    np.testing.assert_array_equal(x[given], x0[given])
    np.testing.assert_array_equal(sigma, np.where(given, np.float32(0), level[:, None, None]))
    assert not by_eps[given].any()


@pytest.fixture
def partial_batch(batch) -> dict:
    """With cells missing, none of them given, and pixels invalid, in given cells too."""
    exists, valid = np.ones((BATCH, VIEWS, TIMES), bool), np.ones((BATCH, VIEWS, TIMES, 4, 4), bool)
    exists[0, 1, 2] = exists[1, 1, 1] = False
    valid[0, 0, 1, :2] = valid[0, 1, 0, 1] = valid[1, 1, 2, :, 3] = False
    assert not (batch["given"] & ~exists).any() and (batch["given"][..., None, None] & ~valid).any()
    return {"given": batch["given"], "exists": exists, "valid": valid}


def test_missing_cells_are_noise_at_sigma_1_and_invalid_pixels_noise_and_neither_has_a_loss(
    config, state, batch, partial_batch, examine
):
    x0, level = np.asarray(to_unit(batch["frames"])), np.array([0.3, 0.6], np.float32)
    eps, (given, exists, valid) = noise(x0.shape), partial_batch.values()
    loss, slopes, x, sigma = examine(config, state()["params"], x0, partial_batch, level, eps)
    np.testing.assert_array_equal(sigma, np.where(given, 0, np.where(exists, level[:, None, None], np.float32(1))))
    nothing = ~valid | ~exists[..., None, None]
    np.testing.assert_array_equal(x[nothing], eps[nothing])
    by_output, by_x0, _ = slopes
    assert not by_x0[nothing].any() and not by_output[nothing].any()  # exact zeros
    unknown = valid & (exists & ~given)[..., None, None]
    assert (by_output[unknown] != 0).all() and not by_output[~unknown].any()
    forward = jax.jit(make_forward(split_model(config.model, config.grid)[0]))
    shown = np.where((valid & given[..., None, None])[..., None], x0, 0)
    hints = {"hints": Hints().default(Known(shown, given, valid=valid))}
    out = forward(state()["params"], x, sigma, given, hints)
    error = (x - out) / np.maximum(sigma, 0.05)[..., None, None, None] - (eps - x0)
    expected = [np.mean(np.square(error[b][unknown[b]])) for b in range(BATCH)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_whatever_is_stored_in_missing_cells_and_invalid_pixels_changes_no_bit_of_the_loss(
    config, state, batch, partial_batch, examine
):
    x0, level = np.asarray(to_unit(batch["frames"])), np.array([0.3, 0.6], np.float32)
    nothing = ~partial_batch["valid"] | ~partial_batch["exists"][..., None, None]
    eps, params = noise(x0.shape), state()["params"]
    found = [
        examine(config, params, np.where(nothing[..., None], stored, x0), partial_batch, level, eps)
        for stored in (np.float32(0), np.float32(100), np.float32(np.nan))
    ]
    assert np.isfinite(found[0][0]).all()
    for other in found[1:]:
        assert equal(other, found[0])


def test_example_of_which_everything_is_given_or_missing_has_a_loss_of_0(config, state, batch, examine):
    x0, level = np.asarray(to_unit(batch["frames"])), np.full((BATCH,), 0.5, np.float32)
    examples = {"given": batch["given"], "exists": batch["given"].copy(), "valid": np.ones(x0.shape[:-1], bool)}
    examples["exists"][1] = True
    loss, slopes, *_ = examine(config, state()["params"], x0, examples, level, noise(x0.shape))
    assert loss[0] == 0 and loss[1] > 0 and not slopes[0][0].any() and np.isfinite(slopes[0]).all()


@pytest.mark.parametrize("hidden", ["no example", "unknown", "dropped"])
def test_cameras_teach_their_map_only_where_they_are_known(told, hidden):
    config, before, batch = told
    poses, nowhere = batch["conditions"]["cameras"], np.full(BATCH, hidden != "unknown")
    batch = batch | {
        "conditions": {"cameras": poses._replace(known=nowhere)},
        "dropped": {"cameras": np.full(BATCH, hidden == "dropped")},
    }
    after, metrics = jitted_step(config)(before, batch)
    assert np.isfinite(float(metrics["loss"]))
    moments = [leaf for path, leaf in jax.tree.leaves_with_path(after["opt"]) if "cameras" in str(path)]
    assert moments and all((np.abs(leaf).max() > 0) == (hidden == "no example") for leaf in moments)


@pytest.mark.parametrize("axis", ["fixed_view", "freeze_time"])
def test_base_sees_hints_in_the_slots_in_which_it_will_see_them_in_a_grid(axis):
    """Those of a clip are those of its cells in a grid whose other cells are unknown."""
    rng = np.random.default_rng(0)
    frames, given = rng.normal(size=(2, 3, 4, 2, 2, 3)).astype(np.float32), np.zeros((2, 3, 4), bool)
    at = np.s_[:, 1:2] if axis == "fixed_view" else np.s_[:, :, 2:3]
    given[at] = rng.random(given[at].shape) < 0.5
    given[0][1, 2] = True
    of_grid, of_clip = (
        complete([Hints()], {}, Known(x, mask))["hints"] for x, mask in ((frames, given), (frames[at], given[at]))
    )
    np.testing.assert_array_equal(of_grid[at], of_clip)
    own, other = (0, 1) if axis == "fixed_view" else (1, 0)
    assert of_clip[0, ..., own, :, :, -1].all()  # the nearest given frame of the clip, for all its cells
    np.testing.assert_array_equal(of_clip[..., other, 0, 0, -1] == 1, given[at])


@pytest.mark.slow
def test_batch_of_pixels_and_one_of_its_latents_make_the_same_step(tiny, config):
    """Latents that merge two times and 2 x 2 pixels, made with the codec's parameters in the state; stored ones are taken
    as they are."""
    config, rng = dataclasses.replace(config, codec=Pooling()), np.random.default_rng(0)
    frames = rng.integers(0, 256, (BATCH, VIEWS, 4, 8, 8, 3), np.uint8)
    given = np.zeros((BATCH, VIEWS, 2), bool)
    given[:, 0] = True
    state = fresh_state(jax.tree.map(jnp.asarray, tiny.params(config.model, GRID)), config)
    state["codec"] = {"scale": np.float32(3)}
    units = (frames / 127.5 - 1).reshape(BATCH, VIEWS, 2, 2, 4, 2, 4, 2, 3)
    latents = (3 * units.mean(axis=(3, 5, 7))).astype(np.float32)
    results = [jitted_step(config)(state, {"frames": x, "given": given}) for x in (frames, latents)]
    (after, metrics), (wanted, wanted_metrics) = results
    assert float(metrics["loss"]) == pytest.approx(float(wanted_metrics["loss"]), rel=1e-5)
    assert equal(after["codec"], state["codec"])
    for leaf, other in zip(jax.tree.leaves(after["opt"]), jax.tree.leaves(wanted["opt"]), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * np.abs(other).max())
