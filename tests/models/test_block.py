"""The block against formulas written out in NumPy, fp64, and rotary embedding as complex numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from wan_rotary import turn

from fourreal.models.block import Block
from fourreal.nn.rotary import rotary_angles

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


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def block() -> tuple[Block, dict]:
    """A block with text, all parameters random, and the parameters in fp64."""
    make = lambda: Block(WIDTH, HEADS, HIDDEN, cross=("text",), dtype=jnp.float32, rngs=nnx.Rngs(0))  # noqa: E731
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
        q, k = (turn(part.reshape(FRAMES, TOKENS, HEADS, HEAD), ACROSS).reshape(part.shape) for part in (q, k))
    weights = softmax(np.einsum("qhe,khe->hqk", q, k) / math.sqrt(HEAD))
    out = np.einsum("hqk,khe->qhe", weights, heads_of(affine(source, p["value"])))
    return affine(out.reshape(len(x), WIDTH), p["out"])


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
    angles = rotary_angles(np.arange(FRAMES), HEIGHT, ACROSS, HEAD)
    single = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    cross = {} if text is None else {"text": single(text)}
    out = jax.jit(lambda x, six, cross: module(x, six, angles, cross))(single(x), single(six), cross)

    six = six + p["modulation"]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (six[:, None, i] for i in range(6))
    flat = lambda a: a.reshape(FRAMES * TOKENS, WIDTH)  # noqa: E731
    seen = flat(norm(x) * (1 + scale_1) + shift_1)
    x = x + gate_1 * naive_attention(seen, seen, p["attention"], rotate=True).reshape(x.shape)
    if with_text:
        cross = p["cross"]["text"]
        query = flat(norm(x) * cross["norm"]["scale"] + cross["norm"]["bias"])
        x = x + naive_attention(query, text, cross, rotate=False).reshape(x.shape)
    hidden = affine(norm(x) * (1 + scale_2) + shift_2, p["mlp"]["in_"])
    gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(out, x + gate_2 * affine(gelu, p["mlp"]["out"]), atol=2e-5, rtol=2e-5)


def test_norms_and_residual_stay_fp32_in_a_bf16_block():
    module = Block(WIDTH, HEADS, HIDDEN, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(normal(FRAMES, TOKENS, WIDTH), jnp.float32)
    angles = rotary_angles(np.arange(FRAMES), HEIGHT, ACROSS, HEAD)
    closed = -module.modulation[...]  # cancels the table: all gates 0, the block must hand on x bit for bit
    out = jax.jit(lambda x, six: module(x, six, angles))(x, jnp.broadcast_to(closed, (FRAMES, 6, WIDTH)))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, x)
