"""The base on clips: noise levels, given frames, contexts, hints, and what is refused. Its arithmetic against Wan's is in
`checkpoints/test_wan.py`."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fourreal.conditions import Cameras
from fourreal.conditions.hints import grid_hints
from fourreal.errors import UserError
from fourreal.models import VideoDiT, VideoDiTConfig

FRAMES = 3
# the same sums in another order, fp32, outputs near 1
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def clip(tiny) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [b f h w c], sigma [b f], given [b f]."""
    data = tiny.grid(1, FRAMES)
    return data["x"][:, 0], data["sigma"][:, 0], data["given"][:, 0]


def test_one_sigma_an_example_is_the_same_as_that_sigma_in_every_unknown_frame(tiny, clip):
    x, _, given = clip
    config = tiny.config()
    forward, params = tiny.forward(config), tiny.params(config)
    sigma = np.float32([0.3, 0.8])
    by_frame = np.where(given, 0, sigma[:, None]).astype(np.float32)
    np.testing.assert_allclose(forward(params, x, sigma, given), forward(params, x, by_frame, given), atol=TOLERANCE)


def test_sigma_of_a_given_frame_is_0_whatever_the_caller_says(tiny, clip):
    x, sigma, given = clip
    config = tiny.config()
    forward, params = tiny.forward(config), tiny.params(config)
    out = forward(params, x, sigma, given)
    np.testing.assert_array_equal(out, forward(params, x, np.where(given, 0, sigma).astype(np.float32), given))
    np.testing.assert_array_equal(out, forward(params, x, np.where(given, 0.9, sigma).astype(np.float32), given))


def test_given_vector_tells_a_given_frame_from_an_unknown_one_of_sigma_0(tiny, clip):
    x, sigma, given = clip
    config = tiny.config()
    forward, params = tiny.forward(config), copy.deepcopy(tiny.params(config))
    sigma = np.where(given, 0, sigma).astype(np.float32)
    unmarked = np.zeros_like(given)
    assert np.abs(forward(params, x, sigma, given) - forward(params, x, sigma, unmarked)).max() > 0.01
    params["base"]["given"]["vector"] = np.zeros_like(params["base"]["given"]["vector"])
    np.testing.assert_array_equal(forward(params, x, sigma, given), forward(params, x, sigma, unmarked))


@pytest.mark.parametrize("hints", [False, True])
def test_no_given_argument_is_the_same_as_nothing_given(tiny, clip, hints):
    x, sigma, given = clip
    config = tiny.config(hints=hints)
    forward, params = tiny.forward(config), tiny.params(config)
    nothing = np.zeros_like(given)
    np.testing.assert_allclose(forward(params, x, sigma), forward(params, x, sigma, nothing), atol=TOLERANCE)


@pytest.mark.parametrize("row", [0, 1])
def test_context_is_a_row_added_to_the_table_of_every_block_and_not_to_the_head(tiny, clip, row):
    x, sigma, given = clip
    config = tiny.config()
    forward, params = tiny.forward(config), copy.deepcopy(tiny.params(config))
    out = forward(params, x, sigma, given, context=("dynamic", "freeze_time", "image")[row])
    table = params["base"]["context"]["table"]
    params["base"]["blocks"]["modulation"] = params["base"]["blocks"]["modulation"] + table[row]
    without = forward(params, x, sigma, given, context=None)
    np.testing.assert_allclose(out, without, atol=TOLERANCE)


@pytest.mark.parametrize("context", ["dynamic", "freeze_time", "image"])
def test_default_hints_are_those_of_the_clip_as_a_grid_of_one_view_or_one_time(tiny, clip, context):
    """So a base sees hints in the slots in which a grid model, which keeps its weights, will see them."""
    x, sigma, given = clip
    config = tiny.config(hints=True)
    forward, params = tiny.forward(config), tiny.params(config)
    axis = 2 if context == "freeze_time" else 1
    hints = np.asarray(grid_hints(*(jnp.expand_dims(part, axis) for part in (x, given))))
    out = forward(params, x, sigma, given, context=context)
    np.testing.assert_allclose(out, forward(params, x, sigma, given, hints=hints, context=context), atol=TOLERANCE)
    other = forward(params, x, sigma, given, hints=hints[:, :, :, ::-1], context=context)
    assert np.abs(out - other).max() > 0.01  # the two slots are not the same


def test_fresh_model_ignores_hints_context_and_the_given_mark(tiny, clip):
    """So training starts from the plain base, and a fresh model with hints equals one without."""
    x, sigma, given = clip
    config = tiny.config(hints=True)
    fresh = nnx.to_pure_dict(nnx.state(VideoDiT(tiny.config(), rngs=nnx.Rngs(0))))
    with_hints = nnx.to_pure_dict(nnx.state(VideoDiT(config, rngs=nnx.Rngs(0))))
    zeros = fresh["context"], fresh["given"], with_hints["conditions"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))
    out = tiny.forward(config)({"base": with_hints}, x, np.where(given, 0, sigma).astype(np.float32), given)
    merged = {"base": {k: v for k, v in with_hints.items() if k != "conditions"}}
    merged["base"]["head"] = with_hints["head"] | {"copy_gate": fresh["head"]["copy_gate"]}
    plain = tiny.forward(tiny.config())(merged, x, np.where(given, 0, sigma).astype(np.float32), None, context=None)
    np.testing.assert_allclose(out, plain, atol=TOLERANCE)


@pytest.mark.parametrize(("copies", "sigma"), [("add", 0.4), ("mix", 0.4), ("mix", 0.0), ("mix", 1.0)])
def test_copies_are_those_of_the_formula(tiny, copies, sigma):
    """A head's output is P x P x 3 pixels, then P x P gates: of the model's input, of the first picture, of the second."""
    side, patch, rng = 4, 2, np.random.default_rng(0)
    model = VideoDiT(tiny.config(hints=True, copies=copies), rngs=nnx.Rngs(0))
    frame, pictures = rng.normal(size=(side, side, 3)), rng.normal(size=(2, side, side, 4))
    out = rng.normal(size=(side // patch) ** 2 * patch**2 * 6).reshape(4, 24)
    found = np.asarray(model.decode(*(jnp.float32(x) for x in (out, frame, sigma, pictures))))
    for y, x in np.ndindex(side, side):
        token, place = out[y // patch * 2 + x // patch], y % patch * patch + x % patch
        own, gates = token[3 * place : 3 * place + 3], token[12 + 3 * place : 15 + 3 * place]
        offered = [picture[y, x, :3] for picture in pictures]
        if copies == "add":
            expected = own + gates[0] * frame[y, x] + gates[1] * offered[0] + gates[2] * offered[1]
        else:
            weights = np.exp([0, *gates[1:]]) / np.exp([0, *gates[1:]]).sum()
            mix, spread = weights @ np.stack([own, *offered]), 0.15 * np.exp(gates[0])
            # the precisions of what is believed before and of what x says add up, and weigh the two
            before, seen = spread**-2, (1 - sigma) ** 2 / max(sigma, 1e-12) ** 2
            expected = (before * mix + seen * frame[y, x] / max(1 - sigma, 1e-12)) / (before + seen)
        np.testing.assert_allclose(found[y, x], expected, atol=1e-5)  # fp32 sums of six numbers near 1


def test_examples_of_a_batch_do_not_see_each_other(tiny, clip):
    x, sigma, given = clip
    config = tiny.config()
    forward, params = tiny.forward(config), tiny.params(config)
    other = x.copy()
    other[1] += 1
    np.testing.assert_array_equal(forward(params, x, sigma, given)[0], forward(params, other, sigma, given)[0])


@pytest.mark.parametrize(
    ("remat", "unroll"),
    [*((policy, False) for policy in ("matmuls", "full", "attention_out", "offload")), ("matmuls", True)],
)
def test_neither_rematerialization_nor_unrolled_layers_change_value_or_gradient(tiny, clip, remat, unroll):
    x, sigma, given = clip
    params = tiny.params(tiny.config())

    def value_and_gradient(**settings):
        forward = tiny.forward(tiny.config(**settings))
        step = jax.jit(jax.value_and_grad(lambda p: jnp.mean(jnp.sin(forward(p, x, sigma, given))))).lower(params)
        assert ("stablehlo.while" in step.as_text()) != settings.get("unroll", False)
        return step.compile()(params)

    value, gradient = value_and_gradient(remat=remat, unroll=unroll)
    expected, wanted = value_and_gradient(remat="none")
    assert abs(value - expected) < 1e-6
    # gradients near 0.1; recomputed values may be fused in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, wanted)


def test_each_rematerialization_policy_keeps_less_than_the_one_before(tiny, clip):
    """none keeps all, matmuls their results, attention_out the attention's, full only the tokens between layers."""
    x, sigma, given = clip
    params = tiny.params(tiny.config())

    def kept(policy: str) -> int:
        """Numbers that the forward pass hands to the backward pass."""
        forward = tiny.forward(tiny.config(remat=policy))
        _, backward = jax.eval_shape(lambda p: jax.vjp(lambda p: forward(p, x, sigma, given), p), params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("none") > kept("matmuls") > kept("attention_out") > kept("full")


def test_layer_inputs_kept_in_bf16_take_half_and_change_gradients_by_their_rounding_alone(tiny, clip):
    x, sigma, given = clip
    params = tiny.params(tiny.config())

    def step(precision: str) -> tuple:
        """(value, gradient, bytes of tokens that the forward pass hands to the backward pass)."""
        forward = tiny.forward(tiny.config(remat="full", kept=precision))
        loss = jax.value_and_grad(lambda p: jnp.mean(jnp.sin(forward(p, x, sigma, given))))
        _, backward = jax.eval_shape(lambda p: jax.vjp(lambda p: forward(p, x, sigma, given), p), params)
        tokens = [leaf for leaf in jax.tree.leaves(backward) if leaf.ndim == 5 and leaf.shape[-1] == 24]
        return *jax.jit(loss)(params), sum(leaf.size * leaf.dtype.itemsize for leaf in tokens)

    (value, gradient, less), (expected, wanted, more) = step("bfloat16"), step("float32")
    config, (clips, frames, height, width, _) = tiny.config(), x.shape
    assert more - less == 2 * config.depth * clips * frames * (height // 2) * (width // 2) * config.width
    assert value == expected
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / (np.abs(b).max() or 1), gradient, wanted)
    assert 0 < max(jax.tree.leaves(apart)) < 0.02  # two layers; inputs are rounded by up to 2^-9 of themselves


def test_a_bf16_model_returns_fp32_close_to_the_fp32_model(tiny, clip):
    x, sigma, given = clip
    params = tiny.params(tiny.config())
    exact = tiny.forward(tiny.config())(params, x, sigma, given)
    out = tiny.forward(tiny.config(dtype="bfloat16"))(params, x, sigma, given)
    assert out.dtype == jnp.float32
    assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()  # 8 bits of mantissa, a dozen matmuls


def test_text_changes_the_output_and_only_its_own_example(tiny, clip):
    x, sigma, given = clip
    config = tiny.config(text_width=10)
    forward, params = tiny.forward(config), tiny.params(config)
    text = np.random.default_rng(0).normal(size=(2, 5, 10)).astype(np.float32)
    other = text.copy()
    other[1] += 1
    first, second = (forward(params, x, sigma, given, text=prompt) for prompt in (text, other))
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[1] - second[1]).max() > 0.001


BAD_INPUT = {
    "x without channels": ({"x": np.zeros((2, FRAMES, 4, 4), np.float32)}, r"clip is \[2, 3, 4, 4\]: expected \[b, f"),
    "x of pixels": ({"x": np.zeros((2, FRAMES, 4, 4, 3), np.uint8)}, "grid is uint8: expected floating point"),
    "x that the patch does not divide": ({"x": np.zeros((2, FRAMES, 4, 5, 3), np.float32)}, "the patch of 2 divides"),
    "x of four channels": ({"x": np.zeros((2, FRAMES, 4, 4, 4), np.float32)}, "expected 3 channels"),
    "sigma of another length": ({"sigma": np.ones(3, np.float32)}, r"sigma is \[3\]: expected one number, \[2\]"),
    "sigma of whole numbers": ({"sigma": np.ones(2, np.int32)}, "sigma is int32: expected floating point"),
    "given in floats": ({"given": np.zeros((2, FRAMES), np.float32)}, "given is float32"),
    "given of another length": ({"given": np.zeros((2, FRAMES + 1), bool)}, "given is bool"),
    "hints": ({"conditions": {"hints": np.zeros((2, 1, FRAMES, 2, 4, 4, 4), np.float32)}}, "takes no hints"),
    "text": ({"conditions": {"text": np.zeros((2, 5, 10), np.float32)}}, "takes no text"),
    "a context": ({"conditions": {"context": "frozen"}}, "dynamic, freeze_time, image or None"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_input_that_does_not_fit_is_refused_in_one_line_with_what_was_expected(tiny, clip, case):
    changes, text = BAD_INPUT[case]
    inputs = dict(zip(("x", "sigma", "given"), clip, strict=True)) | changes
    model = nnx.eval_shape(lambda: VideoDiT(tiny.config(), rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=text) as error:
        jax.eval_shape(
            lambda model: model(inputs["x"], inputs["sigma"], inputs["given"], inputs.get("conditions")), model
        )
    assert "\n" not in str(error.value)


def test_one_number_is_a_sigma_for_all(tiny, clip):
    x, _, given = clip
    config = tiny.config()
    forward, params = tiny.forward(config), tiny.params(config)
    every = np.full(len(x), 0.4, np.float32)
    np.testing.assert_allclose(
        forward(params, x, np.float32(0.4), given), forward(params, x, every, given), atol=TOLERANCE
    )


def test_model_with_text_refuses_to_run_without(tiny, clip):
    model = nnx.eval_shape(lambda: VideoDiT(tiny.config(text_width=10), rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="needs text"):
        jax.eval_shape(lambda model: model(*clip), model)


@pytest.mark.parametrize(
    "changes",
    [
        {"conditions": (Cameras(), Cameras(drop=0.1))},
        {"heads": 5},
        {"heads": 8},
        {"width": 26},
        {"patch": (2, 2, 2)},
        {"patch": (1, 2, 4)},
        {"prediction": "eps"},
        {"remat": "some"},
        {"kept": "bfloat16"},
        {"dtype": "float16"},
    ],
)
def test_settings_that_no_model_has_are_refused(tiny, changes):
    with pytest.raises(ValueError, match=r"expected|must be|give"):
        tiny.config(**changes)


def test_default_patch_is_8_pixels_and_never_spans_frames():
    assert VideoDiTConfig(width=64, depth=1, heads=1, mlp_width=64).patch == (1, 8, 8)
