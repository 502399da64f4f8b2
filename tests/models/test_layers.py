"""The layers against formulas written out in NumPy, fp64, and rotary embedding as complex numbers."""

import cmath
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fourreal.models import layers
from fourreal.models.attention import clip_attention

WIDTH, HEADS, HIDDEN = 24, 2, 32
HEAD = WIDTH // HEADS
FRAMES, HEIGHT, ACROSS = 3, 2, 3
TOKENS = HEIGHT * ACROSS
# fp32 sums of a few dozen numbers near 1, against fp64
TOLERANCE = 5e-6


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def angle(frame: int, y: int, x: int, pair: int, head_size: int) -> float:
    """Wan's angle of one pair of numbers of a head: the first pairs turn with time, then y, then x."""
    space = 2 * (head_size // 6)
    time = head_size - 2 * space
    for position, size in ((frame, time), (y, space), (x, space)):
        if pair < size // 2:
            return position / 10000 ** (2 * pair / size)
        pair -= size // 2
    raise AssertionError


def turn(x: np.ndarray, frames=range(FRAMES)) -> np.ndarray:
    """Rotates [f, s, h, e] number by number: neighbours are real and imaginary parts."""
    out = np.empty_like(x)
    for f, frame in enumerate(frames):
        for s in range(x.shape[1]):
            for h in range(x.shape[2]):
                for pair in range(x.shape[3] // 2):
                    turned = complex(*x[f, s, h, 2 * pair : 2 * pair + 2]) * cmath.exp(
                        1j * angle(frame, s // ACROSS, s % ACROSS, pair, x.shape[3])
                    )
                    out[f, s, h, 2 * pair : 2 * pair + 2] = turned.real, turned.imag
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def block() -> tuple[layers.Block, dict]:
    """A block with text, all parameters random, and the parameters in fp64."""
    make = lambda: layers.Block(WIDTH, HEADS, HIDDEN, text=True, dtype=jnp.float32, rngs=nnx.Rngs(0))  # noqa: E731
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(1)
    values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.3, nnx.to_pure_dict(shapes))
    return nnx.merge(graph, nnx.State(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values))), values


def affine(x: np.ndarray, part: dict) -> np.ndarray:
    return x @ part["kernel"] + part["bias"]


def heads_of(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-1], HEADS, HEAD)


def naive_attention(x: np.ndarray, source: np.ndarray, p: dict, rotate: bool) -> np.ndarray:
    """[n, d] looking at [m, d]; the RMS norm is over the full width, before the heads part."""
    q = heads_of(rms(affine(x, p["query"]), p["query_norm"]["scale"]))
    k = heads_of(rms(affine(source, p["key"]), p["key_norm"]["scale"]))
    if rotate:
        q, k = (turn(part.reshape(FRAMES, TOKENS, HEADS, HEAD)).reshape(part.shape) for part in (q, k))
    weights = softmax(np.einsum("qhe,khe->hqk", q, k) / math.sqrt(HEAD))
    out = np.einsum("hqk,khe->qhe", weights, heads_of(affine(source, p["value"])))
    return affine(out.reshape(len(x), WIDTH), p["out"])


def test_layer_norm_has_mean_0_and_variance_1_with_wans_epsilon():
    x = normal(5, WIDTH) * 3 + 7
    np.testing.assert_allclose(layers.layer_norm(jnp.asarray(x, jnp.float32)), norm(x), atol=TOLERANCE)
    tiny = 1e-3 * x  # its variance is 9 epsilons: epsilon counts, and stands under the root
    np.testing.assert_allclose(layers.layer_norm(jnp.asarray(tiny, jnp.float32)), norm(tiny), atol=5e-5)
    np.testing.assert_array_equal(layers.layer_norm(jnp.full((2, WIDTH), 3.0)), 0)


def test_modulation_scales_by_one_plus_scale_then_shifts_per_frame():
    x, shift, scale = normal(FRAMES, TOKENS, WIDTH), normal(FRAMES, WIDTH, seed=1), normal(FRAMES, WIDTH, seed=2)
    out = layers.modulate(*(jnp.asarray(a, jnp.float32) for a in (x, shift, scale)))
    for f in range(FRAMES):
        np.testing.assert_allclose(out[f], norm(x[f]) * (1 + scale[f]) + shift[f], atol=TOLERANCE)


def test_sinusoid_is_cosines_then_sines():
    out = layers.sinusoid(jnp.asarray([0.0, 37.5]), 8)
    for row, position in zip(out, (0.0, 37.5), strict=True):
        frequencies = [10000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(position * w) for w in frequencies] + [math.sin(position * w) for w in frequencies]
        np.testing.assert_allclose(row, expected, atol=1e-5)  # 37.5 in fp32 is good to 4e-6 of a turn


@pytest.mark.parametrize("head_size", [6, 8, 12, 32, 64, 128])
def test_rotary_angles_split_a_head_into_time_y_and_x_as_wan_does(head_size):
    angles = layers.rotary_angles(np.array([0, 2, 5]), HEIGHT, ACROSS, head_size)
    assert angles.shape == (3, TOKENS, head_size // 2)
    for f, frame in enumerate((0, 2, 5)):
        for s in range(TOKENS):
            expected = [angle(frame, s // ACROSS, s % ACROSS, pair, head_size) for pair in range(head_size // 2)]
            np.testing.assert_allclose(angles[f, s], expected, rtol=1e-6)


def test_rotation_multiplies_neighbouring_pairs_that_lie_apart_as_complex_numbers():
    x = normal(FRAMES, TOKENS, HEADS, HEAD)
    angles = layers.rotary_angles(np.arange(FRAMES), HEIGHT, ACROSS, HEAD)
    apart = np.r_[0:HEAD:2, 1:HEAD:2]
    rotated = layers.rotate(jnp.asarray(x[..., apart], jnp.float32), angles)
    np.testing.assert_allclose(rotated, turn(x)[..., apart], atol=TOLERANCE)


def test_rotated_products_depend_on_relative_positions_only():
    q, k = (jnp.asarray(normal(FRAMES, TOKENS, HEADS, HEAD, seed=seed), jnp.float32) for seed in range(2))

    def products(frames):
        angles = layers.rotary_angles(frames, HEIGHT, ACROSS, HEAD)
        return jnp.einsum("fshe,gthe->hfsgt", layers.rotate(q, angles), layers.rotate(k, angles))

    here, moved = products(np.arange(FRAMES)), products(np.arange(FRAMES) + 5)
    np.testing.assert_allclose(here, moved, atol=2e-5)  # sums of 12 products, angles up to 7 in fp32
    assert np.abs(here - products(np.arange(FRAMES) * 2)).max() > 0.1


def test_queries_and_keys_are_normalised_over_all_heads_together(block):
    module, values = block
    p = values["attention"]
    x = normal(7, WIDTH, seed=3)
    q, k, v = module.attention.project(*[jnp.asarray(x, jnp.float32)] * 2)
    np.testing.assert_allclose(q, heads_of(rms(affine(x, p["query"]), p["query_norm"]["scale"])), atol=TOLERANCE)
    np.testing.assert_allclose(k, heads_of(rms(affine(x, p["key"]), p["key_norm"]["scale"])), atol=TOLERANCE)
    np.testing.assert_allclose(v, heads_of(affine(x, p["value"])), atol=TOLERANCE)


def test_mlp_is_linear_gelu_in_its_tanh_form_linear(block):
    module, values = block
    x = normal(7, WIDTH, seed=3)
    hidden = affine(x, values["mlp"]["in_"])
    gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(
        module.mlp(jnp.asarray(x, jnp.float32)), affine(gelu, values["mlp"]["out"]), atol=TOLERANCE
    )


@pytest.mark.parametrize("with_text", [False, True])
def test_block_is_the_formula_of_its_module(block, with_text):
    module, p = block
    x, six = normal(FRAMES, TOKENS, WIDTH), normal(FRAMES, 6, WIDTH, seed=1)
    text = normal(5, WIDTH, seed=2) if with_text else None
    angles = layers.rotary_angles(np.arange(FRAMES), HEIGHT, ACROSS, HEAD)
    single = lambda a: None if a is None else jnp.asarray(a, jnp.float32)  # noqa: E731
    out = jax.jit(lambda *a: module(a[0], a[1], angles, a[2], clip_attention))(single(x), single(six), single(text))

    six = six + p["modulation"]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (six[:, None, i] for i in range(6))
    flat = lambda a: a.reshape(FRAMES * TOKENS, WIDTH)  # noqa: E731
    seen = flat(norm(x) * (1 + scale_1) + shift_1)
    x = x + gate_1 * naive_attention(seen, seen, p["attention"], rotate=True).reshape(x.shape)
    if with_text:
        query = flat(norm(x) * p["cross_norm"]["scale"] + p["cross_norm"]["bias"])
        x = x + naive_attention(query, text, p["cross_attention"], rotate=False).reshape(x.shape)
    hidden = affine(norm(x) * (1 + scale_2) + shift_2, p["mlp"]["in_"])
    gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(out, x + gate_2 * affine(gelu, p["mlp"]["out"]), atol=2e-5, rtol=2e-5)


def test_stacked_modules_are_initialised_one_by_one():
    stacked = layers.stack(lambda keys: layers.MLP(4, 5, 4, dtype=jnp.float32, rngs=keys), depth=3, rngs=nnx.Rngs(0))
    kernel = np.asarray(stacked.in_.kernel[...])
    assert kernel.shape == (3, 4, 5)
    assert not np.allclose(kernel[0], kernel[1]) and not np.allclose(kernel[1], kernel[2])
    # Xavier of 4 inputs and 5 outputs, whatever the number of layers
    assert np.abs(kernel).max() <= math.sqrt(6 / 9)
    assert np.abs(kernel).max() > 0.8 * math.sqrt(6 / 9)


def test_norms_and_residual_stay_fp32_in_a_bf16_block():
    module = layers.Block(WIDTH, HEADS, HIDDEN, text=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(FRAMES, TOKENS, WIDTH), jnp.float32)
    angles = layers.rotary_angles(np.arange(FRAMES), HEIGHT, ACROSS, HEAD)
    closed = -module.modulation[...]  # cancels the table: all gates 0, the block must hand on x bit for bit
    out = jax.jit(lambda x, six: module(x, six, angles))(x, jnp.broadcast_to(closed, (FRAMES, 6, WIDTH)))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize(("rows", "columns"), [(24, 96), (96, 24)])
def test_kernels_gradient_is_one_product_on_cpu_wide_and_without_a_turned_copy_of_tokens(
    rows: int, columns: int
) -> None:
    x, kernel, dy = normal(2, 3, 5, rows), normal(rows, columns, seed=1), normal(2, 3, 5, columns, seed=2)
    arrays = [jnp.float32(array) for array in (x, kernel, dy)]

    def run(x, kernel, dy):
        out, gradients = jax.vjp(layers.dot, x, kernel)
        return out, *gradients(dy)

    program = jax.jit(run).lower(*arrays).compile()
    wanted = x @ kernel, dy @ kernel.T, np.einsum("abck,abcn->kn", x, dy)
    for found, value in zip(program(*arrays), wanted, strict=True):
        np.testing.assert_allclose(found, value, atol=2e-5)  # fp32 sums of up to 96 products near 1
    text = program.as_text()
    (product,) = (line for line in text.splitlines() if "lhs_contracting_dims={0}, rhs_contracting_dims={0}" in line)
    assert "f32[24,96]{1,0} dot" in product or "f32[96,24]{0,1} dot" in product  # two names of one order in memory
    assert f"f32[{rows},30]" not in text and f"f32[{columns},30]" not in text
