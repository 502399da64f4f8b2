"""The kernels against a dense softmax and its gradient, and which of them a platform gets.

Splash attention runs here in Pallas's interpreter. cuDNN needs a GPU; without one its program is compared with that of jax's
own gradient. A GPU's matmuls are bf16 here: two numbers of 8 bits, summed in fp32.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, split_model
from fourreal.nn import kernels
from fourreal.nn.attention import attend
from fourreal.nn.kernels import XLA, AttentionConfig, Kernel, SplashBlocks, resolve_kernel
from fourreal.nn.kernels.chunked import WRITTEN_OUT
from fourreal.nn.kernels.splash import fit_block

SPLASH = Kernel("splash", SplashBlocks(128, 128, 128, 128, 128), interpret=True)
CUDNN = Kernel("cudnn")
CHUNKED = Kernel("chunked", cache=1)  # a sequence at a time
GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="cudnn needs a GPU")
HEADS = 2


def dense(q, k, v):
    """(softmax(q k^T / sqrt(e)) v, log-sum-exp) in one piece."""
    logits = jnp.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(logits), v), jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def inputs(queries: int, keys: int, size: int, dtype=jnp.float32, batch: int = 2) -> list[jax.Array]:
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(0)
    shapes = [(batch, length, HEADS, size) for length in (queries, keys, keys, queries)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def check(kernel: Kernel, arrays: list[jax.Array], atol: float) -> None:
    """Values, log-sum-exp and gradients of a kernel equal those of the dense formula in fp32."""

    @jax.jit
    def run(q, k, v, do):
        out, lse = kernels.forward(q, k, v, kernel)
        return out, lse, kernels.backward(q, k, v, out, lse, do, kernel)

    @jax.jit
    def exact(q, k, v, do):
        (out, lse), vjp = jax.vjp(dense, q, k, v)
        return out, jnp.swapaxes(lse, 1, 2), vjp((do, jnp.zeros_like(lse)))

    found, wanted = run(*arrays), exact(*(x.astype(jnp.float32) for x in arrays))
    for name, one, other in zip(("out", "lse", "dq", "dk", "dv"), *map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("kernel", "queries", "keys"),
    [
        pytest.param(XLA, 300, 70, id="xla"),
        pytest.param(CHUNKED, 300, 70, id="chunked"),
        pytest.param(SPLASH, 128, 128, id="splash-whole-block"),
        pytest.param(SPLASH, 130, 200, id="splash-filled-blocks"),
        pytest.param(SPLASH, 100, 70, id="splash-one-filled-block"),
    ],
)
def test_kernel_is_a_dense_softmax_in_values_and_gradients(kernel, queries, keys):
    check(kernel, inputs(queries, keys, size=16), atol=5e-6)  # values and gradients up to 3, sums of 300


@pytest.mark.parametrize(("batch", "loops"), [(5, False), (2 * WRITTEN_OUT + 1, True)])
def test_chunks_that_the_batch_does_not_fill_are_a_dense_softmax(batch, loops):
    two = Kernel("chunked", cache=2 * 4 * HEADS * 30 * 20)
    arrays = inputs(30, 20, size=16, batch=batch)
    check(two, arrays, atol=5e-6)
    program = str(jax.make_jaxpr(lambda q, k, v, do: kernels.forward(q, k, v, two))(*arrays))
    assert f"f32[2,{HEADS},30,20]" in program and f"f32[{batch},{HEADS},30,20]" not in program
    assert ("scan[" in program) == loops


def test_few_logits_are_xlas_own_and_differentiate_in_every_mode():
    q, k, v, do = inputs(30, 20, size=16)
    attend_to = lambda q: attend(q, k, v, Kernel("chunked"))  # noqa: E731
    np.testing.assert_allclose(
        *(jax.jvp(of, (q,), (do,))[1] for of in (attend_to, lambda q: dense(q, k, v)[0])), atol=5e-6
    )


@GPU
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(("queries", "keys"), [(128, 128), (576, 576), (1000, 1000), (300, 77)])
def test_cudnn_is_a_dense_softmax_in_values_and_gradients(queries, keys, size):
    check(CUDNN, inputs(queries, keys, size, jnp.bfloat16), atol=3e-2)


def cudnn_calls(function, *arrays, monkeypatch) -> list[str]:
    """The calls of cuDNN in a function's program for CUDA, with their settings; arguments' names left out."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    return [re.sub(r"%[\w#]+", "%", line.strip()) for line in text.splitlines() if "__cudnn$" in line]


def test_cudnn_makes_the_calls_of_jaxs_own_gradient(monkeypatch):
    def by_jax(q, k, v, do):
        function = lambda *x: jax.nn.dot_product_attention(*x, implementation="cudnn")  # noqa: E731
        out, vjp = jax.vjp(function, q, k, v)
        return out, vjp(do)

    def by_us(q, k, v, do):
        out, lse = kernels.forward(q, k, v, CUDNN)
        return out, kernels.backward(q, k, v, out, lse, do, CUDNN)

    arrays = inputs(300, 78, 64, jnp.bfloat16)
    expected = cudnn_calls(by_jax, *arrays, monkeypatch=monkeypatch)
    assert len(expected) == 2
    assert cudnn_calls(by_us, *arrays, monkeypatch=monkeypatch) == expected


@pytest.mark.parametrize("length", [1, 60, 128, 576, 577, 1000, 2880, 4608, 5000, 36864])
@pytest.mark.parametrize("most", [128, 768, 1024, 1536])
def test_block_divides_the_filled_up_length_and_wastes_little(length, most):
    block, filled = fit_block(length, most)
    assert block % 128 == 0 and block <= most
    assert filled % block == 0 and filled >= length
    assert filled - length < max(128, 0.12 * length)


@pytest.mark.parametrize("most", [768, 1024, 1536])
def test_paper_sequences_of_4608_tokens_are_not_filled_up(most):
    assert fit_block(4608, most) == (768 if most < 1536 else 1536, 4608)


@pytest.mark.parametrize(
    ("platform", "head_size", "dtype", "expected"),
    [
        ("cpu", 64, "float32", "attention: chunked"),
        ("cpu", 64, "bfloat16", "attention: chunked"),
        ("tpu", 64, "bfloat16", "attention: splash"),
        ("tpu", 128, "float32", "attention: splash"),
        ("gpu", 128, "bfloat16", "attention: cudnn"),
        ("gpu", 64, "float32", "attention: xla (cudnn needs bfloat16 or float16 and the model's dtype is float32)"),
        (
            "gpu",
            132,
            "bfloat16",
            "attention: xla (cudnn needs a head size that is a multiple of 8 up to 128 and it is 132)",
        ),
        (
            "gpu",
            20,
            "float16",
            "attention: xla (cudnn needs a head size that is a multiple of 8 up to 128 and it is 20)",
        ),
    ],
)
def test_auto_takes_the_platforms_own_kernel_and_says_why_where_it_cannot(platform, head_size, dtype, expected):
    assert str(resolve_kernel(AttentionConfig(), platform, head_size, dtype)) == expected


@pytest.mark.parametrize(
    ("kernel", "platform", "head_size", "dtype", "words"),
    [
        ("splash", "gpu", 64, "bfloat16", "needs a TPU and the devices are gpu"),
        ("splash", "tpu", 64, "float16", "needs bfloat16 or float32"),
        ("cudnn", "cpu", 64, "bfloat16", "needs a GPU and the devices are cpu"),
        ("cudnn", "gpu", 64, "float32", "needs bfloat16 or float16"),
        ("cudnn", "gpu", 256, "bfloat16", "multiple of 8 up to 128"),
    ],
)
def test_a_named_kernel_that_the_devices_lack_is_one_clear_line(kernel, platform, head_size, dtype, words):
    with pytest.raises(
        ValueError, match=rf"attention.kernel is '{kernel}', but .*{words}.*: choose auto or xla"
    ) as error:
        resolve_kernel(AttentionConfig(kernel), platform, head_size, dtype)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", ["xla", "chunked", "cudnn", "splash"])
def test_a_named_kernel_is_taken_with_the_configs_blocks(kernel):
    platform = {"xla": "tpu", "chunked": "cpu", "cudnn": "gpu", "splash": "tpu"}[kernel]
    config = AttentionConfig(kernel, SplashBlocks(q=256))
    assert resolve_kernel(config, platform, 64, "bfloat16") == Kernel(kernel, SplashBlocks(q=256))


@pytest.mark.parametrize(
    "blocks", [SplashBlocks(128, 256, 512, 128, 128), SplashBlocks(512, 1024, 256, 512, 256)], ids=["small", "large"]
)
def test_blocks_of_the_config_are_those_of_the_kernels_on_the_device(blocks):
    """Of 1024 tokens: how many blocks the forward has of queries and of keys, the backward of keys and of queries, what a
    block holds, and how many keys each takes at once, as its first product says."""
    kernel = resolve_kernel(AttentionConfig(blocks=blocks), "tpu", 64, "bfloat16")
    x = jax.ShapeDtypeStruct((1, 1024, HEADS, 64), jnp.bfloat16)
    gradient = jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, kernel).astype(jnp.float32)), argnums=(0, 1, 2))
    forward, backward = equations(jax.make_jaxpr(gradient)(x, x, x).jaxpr, "pallas_call")
    q, kv, q_backward, kv_backward, step = dataclasses.astuple(blocks)
    assert forward.params["grid_mapping"].grid == (HEADS, 1024 // q, 1024 // kv)
    assert backward.params["grid_mapping"].grid == (1024 // kv_backward, HEADS, 1024 // q_backward)
    for call, sizes in ((forward, (q, kv, kv)), (backward, (q_backward, kv_backward, kv_backward))):
        mappings = call.params["grid_mapping"].block_mappings[:3]
        assert tuple(mapping.block_shape[1].block_size for mapping in mappings) == sizes
        product = next(equations(call.params["jaxpr"], "dot_general"))
        assert sorted(product.outvars[0].aval.shape) == sorted((sizes[0], step))


def equations(jaxpr, primitive: str):
    """The equations of a jaxpr, and of those within it, with a primitive's name."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from equations(getattr(inner, "jaxpr", inner), primitive)


def is_jaxpr(leaf) -> bool:
    return isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)


@pytest.mark.parametrize("q", [0, 64, 200])
def test_blocks_are_multiples_of_a_tpus_lanes(q):
    with pytest.raises(ValueError, match=f"blocks.q is {q}: give a multiple of 128"):
        SplashBlocks(q=q)


def test_an_unknown_kernel_is_refused_by_name():
    with pytest.raises(ValueError, match="kernel 'flash': expected one of auto, xla, chunked, cudnn, splash"):
        AttentionConfig("flash")


@pytest.mark.parametrize(("fusion", "runs"), [("soft", 2), ("fused", 3)])
def test_a_model_runs_all_its_attention_on_the_kernel_it_was_built_with(tiny, fusion, runs):
    """Self-attention of two streams, or the three parts of the fused, and cross-attention; counted in the body of a scan."""
    base, grid = tiny.config(text_width=10), GridDiTConfig(fusion=fusion)
    graph, params = split_model(base, grid, SPLASH)
    forward = make_forward(graph)
    x, sigma, text = jnp.zeros((1, 2, 3, 4, 4, 3)), jnp.zeros(1), jnp.zeros((1, 5, 10))
    program = str(jax.make_jaxpr(lambda p: forward(p, x, sigma, conditions={"text": text}))(params))
    streams = 2 if fusion == "soft" else 1
    assert program.count("name=splash_mha_fwd") == runs + streams
