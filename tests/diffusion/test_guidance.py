"""Guidance against three separate calls of a model, and how many evaluations each weight costs."""

import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.diffusion.guidance import Guidance, guided_clean
from fourreal.models import Cameras

SHAPE = (2, 2, 3, 2, 2, 3)
SIGMA = 0.6


class Model:
    """Anything nonlinear in all of its inputs; remembers the batch of each call."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, sigma, given, text=None):
        self.batches.append(len(x))
        mark = jnp.where(given, 0.7, 0.2)[..., None, None, None]
        level = sigma.reshape(-1, 1, 1, 1, 1, 1)
        prompt = 0.0 if text is None else text.sum(axis=(1, 2)).reshape(level.shape)
        return jnp.sin(2 * x + level + prompt) * mark + jnp.mean(x, axis=(1, 2), keepdims=True)


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def data() -> dict:
    given = np.random.default_rng(1).random(SHAPE[:3]) < 0.4
    frames, eps = normal(*SHAPE), normal(*SHAPE, seed=1)
    x = np.where(given[..., None, None, None], frames, normal(*SHAPE, seed=2))
    return {"x": x, "x0_given": frames, "eps": eps, "given": given}


TEXT, NULL = normal(2, 4, 5, seed=3) / 5, normal(1, 4, 5, seed=4) / 5


def guided(model, data, guidance, prediction="x0", **text):
    return guided_clean(model, **data, sigma=jnp.float32(SIGMA), guidance=guidance, prediction=prediction, **text)


def single(data, prediction: str, with_given: bool, text=None) -> np.ndarray:
    """One evaluation's x0, every cell's noise level written out."""
    given = data["given"] if with_given else np.zeros_like(data["given"])
    noised = (1 - SIGMA) * data["x0_given"] + SIGMA * data["eps"]
    x = data["x"] if with_given else np.where(data["given"][..., None, None, None], noised, data["x"])
    output = Model()(x, jnp.full((2,), SIGMA), given, *(() if text is None else (jnp.asarray(text),)))
    level = np.where(given, 0, SIGMA).astype(np.float32)[..., None, None, None]
    return output if prediction == "x0" else x - level * output


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_weight_1_is_one_evaluation_without_guidance(data, prediction):
    model = Model()
    np.testing.assert_allclose(guided(model, data, Guidance(), prediction), single(data, prediction, True), atol=1e-6)
    assert model.batches == [2]
    model = Model()
    out = guided(model, data, Guidance(), prediction, text=TEXT, null_text=NULL)
    np.testing.assert_allclose(out, single(data, prediction, True, TEXT), atol=1e-6)
    assert model.batches == [2]


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_guidance_over_given_cells_extrapolates_from_the_unconditional_answer(data, prediction):
    w, model = 2.5, Model()
    out = guided(model, data, Guidance(given=w), prediction)
    without, with_given = (single(data, prediction, flag) for flag in (False, True))
    np.testing.assert_allclose(out, without + w * (with_given - without), atol=5e-6)
    assert model.batches == [4]  # both branches in one batch


@pytest.mark.parametrize("prediction", ["x0", "u"])
def test_guidance_over_given_cells_and_text_is_the_formula_of_three_calls(data, prediction):
    w_given, w_text, model = 1.7, 3.2, Model()
    out = guided(model, data, Guidance(w_given, w_text), prediction, text=TEXT, null_text=NULL)
    nothing, cells, both = (
        single(data, prediction, flag, text)
        for flag, text in ((False, np.repeat(NULL, 2, 0)), (True, np.repeat(NULL, 2, 0)), (True, TEXT))
    )
    expected = nothing + w_given * (cells - nothing) + w_text * (both - cells)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert model.batches == [6]


@pytest.mark.parametrize(
    ("given", "text", "evaluations"), [(1.0, 2.0, 2), (2.0, 2.0, 2), (0.0, 0.0, 1), (0.0, 1.0, 3), (2.0, 0.0, 2)]
)
def test_branches_of_weight_0_are_not_computed(data, given, text, evaluations):
    model = Model()
    guided(model, data, Guidance(given, text), text=TEXT, null_text=NULL)
    assert model.batches == [2 * evaluations]


def test_every_branch_sees_the_cameras(data):
    class Seen:
        def __call__(self, x, sigma, given, cameras):
            assert cameras.K.shape == (len(x), 2, 3, 3) and cameras.known is None
            return x * cameras.K.mean(axis=(1, 2, 3)).reshape(-1, 1, 1, 1, 1, 1)

    cameras = Cameras(normal(2, 2, 3, 3), normal(2, 2, 4, 4))
    twice = guided(Seen(), data, Guidance(given=2.0), cameras=cameras)
    once, none = (single_with(Seen(), data, cameras, with_given) for with_given in (True, False))
    np.testing.assert_allclose(twice, 2 * once - none, atol=1e-5)  # a few roundings of numbers about 5


def single_with(model, data, cameras, with_given: bool) -> np.ndarray:
    noised = (1 - SIGMA) * data["x0_given"] + SIGMA * data["eps"]
    x = data["x"] if with_given else np.where(data["given"][..., None, None, None], noised, data["x"])
    return model(x, SIGMA, data["given"], cameras)
