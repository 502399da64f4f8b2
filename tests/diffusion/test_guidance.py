"""Guidance against separate calls of a model, what its branches see, and that nothing given leaks into the null branch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_denoiser import PARAMS, answer, known_cells, normal, spied, toy

from fourreal.conditions import Cameras, Hints, Text
from fourreal.conditions.hints import grid_hints
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.diffusion.guidance import Branch, Guided, scale_branches
from fourreal.diffusion.stage import Stage
from fourreal.models import GridDiTConfig
from fourreal.scene import Cameras as CameraValue

SHAPE = (2, 2, 3, 4, 4, 3)
LISTED = (Hints(), Cameras(), Text(width=5))
SIGMA = np.float32(0.6)
X, KNOWN = normal(*SHAPE, seed=2), known_cells(SHAPE)
GIVEN = np.asarray(KNOWN.mask)
PUT = GIVEN[..., None, None, None]
TEXT = normal(2, 4, 5, seed=3)
CAMERAS = CameraValue(normal(2, 2, 3, 3, seed=4), normal(2, 2, 4, 4, seed=5))
DROP_ALL = Branch(frozenset({"given", "text", "cameras"}))
DROP_TEXT = Branch(frozenset({"text"}))


def single(given: bool, text: bool, cameras: bool, prediction: str) -> np.ndarray:
    """One evaluation's x0, with all that the model sees written out."""
    x = np.where(PUT, KNOWN.frames, X) if given else X
    mask = GIVEN if given else np.zeros_like(GIVEN)
    hints = grid_hints(KNOWN.frames, KNOWN.mask)
    sigma = np.where(mask, 0, SIGMA)
    conditions = {
        "hints": hints if given else np.zeros_like(hints),
        "text": TEXT if text else np.zeros_like(TEXT),
        "cameras": CAMERAS if cameras else CAMERAS._replace(known=np.zeros(2, bool)),
    }
    output = np.asarray(answer(jnp.asarray(x), jnp.asarray(sigma), jnp.asarray(mask), conditions))
    return output if prediction == "x0" else x - sigma[..., None, None, None] * output


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_answer_is_the_weighted_sum_of_separate_calls_with_the_known_frames_put_in(prediction):
    branches, weights = (DROP_ALL, DROP_TEXT, Branch()), np.float32([-0.7, -1.5, 3.2])
    guided = Guided(toy(conditions=LISTED, prediction=prediction), branches)
    out = guided(PARAMS, X, SIGMA, KNOWN, {"text": TEXT, "cameras": CAMERAS}, weights=weights)
    parts = (single(*told, prediction) for told in ((False, False, False), (True, False, True), (True, True, True)))
    expected = np.where(PUT, KNOWN.frames, sum(weight * part for weight, part in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(out, expected, atol=5e-5, rtol=1e-5)  # fp32, weights up to 3, numbers up to 10


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_usual_scale_extrapolates_from_the_answer_without_given_cells_and_text(prediction):
    branches, weights = scale_branches(2.5)
    assert weights.sum() == 1
    guided = Guided(toy(conditions=LISTED, prediction=prediction), branches)
    out = guided(PARAMS, X, SIGMA, KNOWN, {"text": TEXT, "cameras": CAMERAS}, weights=weights)
    nothing, everything = single(False, False, True, prediction), single(True, True, True, prediction)
    expected = np.where(PUT, KNOWN.frames, nothing + 2.5 * (everything - nothing))
    np.testing.assert_allclose(out, expected, atol=5e-5, rtol=1e-5)


def test_scale_1_is_one_evaluation_and_the_denoiser_itself():
    spy = spied(conditions=LISTED)
    branches, weights = scale_branches(1.0)
    told = {"text": TEXT, "cameras": CAMERAS, "hints": grid_hints(KNOWN.frames, KNOWN.mask)}
    out = Guided(spy.denoiser, branches)(PARAMS, X, SIGMA, KNOWN, told, weights=weights)
    jax.effects_barrier()
    assert [len(x) for x, _, _ in spy.seen] == [2]
    np.testing.assert_allclose(out, spy.denoiser(PARAMS, X, SIGMA, KNOWN, told), atol=1e-6)


def test_another_scale_camera_path_text_or_noise_compiles_nothing():
    """Counted by JAX itself, at the door where validation, sampling and evaluation sample."""
    branches, weights = scale_branches(2.0)
    chex.clear_trace_counter()
    stage = Stage(toy(conditions=LISTED))
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sample(noise, known, told, weights):
        return stage.integrate(PARAMS, known, noise, told, steps=2, branches=branches, weights=weights)

    told = {"text": TEXT, "cameras": CAMERAS}
    others = [
        (X, KNOWN, told, scale_branches(7.5)[1]),
        (X, KNOWN, told | {"text": TEXT[::-1].copy()}, weights),
        (X, KNOWN, told | {"cameras": CAMERAS._replace(K=2 * CAMERAS.K)}, weights),
        (normal(*SHAPE, seed=9), KNOWN, told, weights),
        (X, KNOWN._replace(mask=jnp.asarray(~GIVEN)), told, weights),
    ]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first = np.asarray(sample(X, KNOWN, told, weights))
        assert compiled  # so the listener hears
        compiled.clear()
        for inputs in others:
            assert np.abs(np.asarray(sample(*inputs)) - first).max() > 0.01
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_branches_are_one_batch_and_one_without_the_given_cells_sees_them_as_unknown():
    spy = spied(conditions=LISTED)
    Guided(spy.denoiser, scale_branches(3.0)[0])(PARAMS, X, SIGMA, KNOWN, {"text": TEXT}, weights=np.float32([-2, 3]))
    jax.effects_barrier()
    ((x, sigma, given),) = spy.seen
    assert len(x) == 4
    np.testing.assert_array_equal(x, np.concatenate([X, np.where(PUT, KNOWN.frames, X)]))
    np.testing.assert_array_equal(given, np.concatenate([np.zeros_like(GIVEN), GIVEN]))
    np.testing.assert_array_equal(sigma, np.where(given, 0, SIGMA))


# What a null branch may not know


@pytest.fixture(scope="module")
def model(tiny):
    """A real model with hints, and its parameters."""
    base, grid = tiny.config(hints=True, cameras=True, depth=1), GridDiTConfig("soft")
    return make_denoiser(base, grid), tiny.params(base, grid)


def leaks(model, hints_told: bool, branches: tuple[Branch, ...], weights: np.ndarray) -> list[float]:
    """Largest gradients of the unknown cells at sigma 1, where x is noise, by the given frames and by hints of a caller."""
    denoiser, params = model
    weight = np.where(PUT, 0, normal(*SHAPE, seed=6))
    warped = jnp.asarray(normal(2, 2, 3, 2, 4, 4, 4, seed=7))

    @jax.jit
    def total(frames, hints):
        told = {"hints": hints} if hints_told else {}
        guided = Guided(denoiser, branches)
        out = guided(params, X, np.float32(1), KNOWN._replace(frames=frames), told, weights=weights)
        return jnp.sum(weight * out)

    return [float(jnp.abs(part).max()) for part in jax.grad(total, argnums=(0, 1))(KNOWN.frames, warped)]


NULL = Branch(frozenset({"given"}))


@pytest.mark.parametrize("hints_told", [False, True], ids=["nearest", "warped"])
@pytest.mark.parametrize(
    ("branches", "weights"), [((NULL,), None), ((NULL, Branch()), np.float32([1, 0]))], ids=["alone", "weight_0"]
)
def test_null_branch_knows_nothing_of_given_frames_nor_of_hints(model, hints_told, branches, weights):
    assert leaks(model, hints_told, branches, weights) == [0, 0]


@pytest.mark.parametrize("hints_told", [False, True], ids=["nearest", "warped"])
def test_hints_that_were_not_dropped_with_the_given_cells_would_be_seen_to_leak(model, hints_told, monkeypatch):
    monkeypatch.setattr(Hints, "from_given", False)
    of_frames, of_hints = leaks(model, hints_told, (NULL,), None)
    assert (of_hints if hints_told else of_frames) > 1e-3


def test_full_branch_knows_them(model):
    of_frames, of_hints = leaks(model, True, (Branch(),), None)
    assert of_frames > 1e-3 and of_hints > 1e-3
