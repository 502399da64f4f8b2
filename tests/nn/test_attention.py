"""Attention against a dense softmax in fp64, or in fp32 where gradients are compared.

What a kernel computes by itself is tested in `test_kernels.py`; here it is what is made of them.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.interpreters import partial_eval

from fourreal.models.video_dit import REMAT_POLICIES
from fourreal.nn.attention import attend, attend_with_lse, clip_attention, cross_attention, fused_attention
from fourreal.nn.kernels import XLA, Kernel, SplashBlocks
from fourreal.parallel.activations import swap_view_time

VIEWS, TIMES, TOKENS, HEADS, SIZE = 2, 3, 4, 2, 6
SPLASH = Kernel("splash", SplashBlocks(128, 128, 128, 128, 128), interpret=True)
CUDNN = pytest.param(
    Kernel("cudnn"), marks=pytest.mark.skipif(jax.default_backend() != "gpu", reason="cudnn needs a GPU")
)
KERNELS = pytest.mark.parametrize("kernel", [XLA, SPLASH], ids=["xla", "splash"])


def dense(q, k, v, seen=None):
    """softmax(q k^T / sqrt(e)) v with a boolean mask [q, k], all at once; numpy in, numpy out, or jax likewise."""
    xp = np if isinstance(q, np.ndarray) else jnp
    logits = xp.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5
    if seen is not None:
        logits = xp.where(seen, logits, -xp.inf)
    weights = xp.exp(logits - logits.max(-1, keepdims=True))
    return xp.einsum("bhqk,bkhe->bqhe", weights / weights.sum(-1, keepdims=True), v)


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def same_view_or_time(views: int, times: int) -> np.ndarray:
    """Which of two tokens, numbered as (v t s), may see each other."""
    view, time = (np.repeat(axis.ravel(), TOKENS) for axis in np.indices((views, times)))
    return (view[:, None] == view) | (time[:, None] == time)


def fused_inputs(own_cell: float, views: int = VIEWS, times: int = TIMES, size: int = SIZE) -> list[np.ndarray]:
    """q, k, v of a grid; a cell's own keys are turned towards its queries by `own_cell`."""
    q, k, v = (normal(2, views, times, TOKENS, HEADS, size, seed=seed).astype(np.float32) for seed in range(3))
    mean = q.mean(axis=3, keepdims=True)
    return [q, k + own_cell * mean / np.linalg.norm(mean, axis=-1, keepdims=True) ** 2, v]


def reference(q, k, v, k_other=None, v_other=None):
    """The fused pattern as one dense masked softmax over all cells of the grid, or over their keys and those of `other`."""
    views, times = q.shape[1:3]
    xp = np if isinstance(q, np.ndarray) else jnp
    q, k, v, *other = (
        rearrange(x, "b v t s h e -> b (v t s) h e") for x in (q, k, v, k_other, v_other) if x is not None
    )
    seen = same_view_or_time(views, times)
    if other:
        own_view = np.kron(np.eye(views, dtype=bool), np.ones((times * TOKENS,) * 2, bool))
        seen = np.concatenate([own_view, seen & ~own_view], axis=1)
        k, v = (xp.concatenate(both, axis=1) for both in zip((k, v), other, strict=True))
    return rearrange(dense(q, k, v, seen), "b (v t s) h e -> b v t s h e", v=views, t=times)


def fused_with_other(q, k, v, *other, kernel: Kernel):
    return fused_attention(q, k, v, kernel, other=other or None)


@functools.cache
def value_and_gradients(function, kernel: Kernel | None):
    """The compiled value, and the gradients of a weighted sum of outputs by q, k and v."""
    function = function if kernel is None else functools.partial(function, kernel=kernel)

    def both(weight, *x):
        out, vjp = jax.vjp(function, *x)
        return out, vjp(weight.astype(out.dtype))

    return jax.jit(both)


def check_fused(kernel: Kernel, inputs: list[np.ndarray], atol: float, gradient_atol: float, dtype=jnp.float32):
    """Fused attention equals one masked softmax, its gradients relative to the largest: keys turned far make large ones."""
    weight = normal(*inputs[0].shape, seed=9).astype(np.float32)
    arrays = [jnp.asarray(x, dtype) for x in inputs]
    exact = reference(*(np.asarray(x, np.float64) for x in arrays))
    out, gradients = value_and_gradients(fused_with_other, kernel)(weight, *arrays)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=atol)
    _, expected = value_and_gradients(reference, None)(weight, *(x.astype(jnp.float32) for x in arrays))
    scale = max(float(jnp.abs(x).max()) for x in expected)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=gradient_atol * scale)


def test_attend_is_a_dense_softmax():
    q, k, v = normal(2, 5, HEADS, SIZE), normal(2, 7, HEADS, SIZE, seed=1), normal(2, 7, HEADS, SIZE, seed=2)
    out = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, dense(q, k, v), atol=2e-6)  # values near 1: some units in the last place


def test_attend_is_exact_for_logits_in_the_thousands():
    """Small integers make the logits exact in fp32, so only the softmax itself can lose anything."""
    rng = np.random.default_rng(0)
    q, k = (rng.integers(-64, 64, (1, 6, 1, 4)).astype(np.float64) for _ in range(2))
    v = normal(1, 6, 1, 4)
    assert np.abs(np.einsum("bqhe,bkhe->bhqk", q, k) / 2).max() > 2000
    out = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, dense(q, k, v), atol=1e-6)


def test_log_sum_exp_is_that_of_the_logits():
    q, k, v = normal(2, 5, HEADS, SIZE), normal(2, 7, HEADS, SIZE, seed=1), normal(2, 7, HEADS, SIZE, seed=2)
    _, lse = attend_with_lse(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    expected = np.log(np.exp(np.einsum("bqhe,bkhe->bqhk", q, k) / SIZE**0.5).sum(-1, keepdims=True))
    np.testing.assert_allclose(lse, expected, atol=2e-6)


def test_leading_axis_of_one_broadcasts_over_the_clips_of_a_grid():
    q = normal(2, 3, 5, HEADS, SIZE).astype(np.float32)
    k, v = (normal(2, 1, 7, HEADS, SIZE, seed=seed).astype(np.float32) for seed in (1, 2))
    out = attend(*map(jnp.asarray, (q, k, v)))
    for clip in range(3):
        np.testing.assert_allclose(out[:, clip], dense(q[:, clip], k[:, 0], v[:, 0]), atol=2e-6)


def test_tokens_of_a_clip_see_the_whole_clip_and_no_other():
    q, k, v = (normal(2, 3, TOKENS, HEADS, SIZE, seed=seed).astype(np.float32) for seed in range(3))
    joined = [rearrange(x, "b f s h e -> b (f s) h e") for x in (q, k, v)]
    expected = rearrange(dense(*joined), "b (f s) h e -> b f s h e", f=3)
    np.testing.assert_allclose(clip_attention(*map(jnp.asarray, (q, k, v))), expected, atol=2e-6)


def test_text_shared_by_all_clips_is_a_dense_softmax_on_a_flash_kernel_in_values_and_gradients():
    q = normal(1, 2, 5, HEADS, SIZE).astype(np.float32)
    k, v = (normal(1, 1, 7, HEADS, SIZE, seed=seed).astype(np.float32) for seed in (1, 2))
    weight = normal(*q.shape, seed=9).astype(np.float32)
    out, gradients = value_and_gradients(cross_attention, SPLASH)(weight, q, k, v)

    def per_clip(q, k, v):
        return jnp.stack([dense(q[:, clip], k[:, 0], v[:, 0]) for clip in range(2)], axis=1)

    expected, wanted = value_and_gradients(per_clip, None)(weight, q, k, v)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for found, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, want, atol=3e-6)


# 40: the own cell holds all of the weight, and e^la + e^lb - e^lc is a difference of equals; -40: it holds none. Logits then
# reach 70, where half a unit in the last place is 4e-6 of a weight: the dense softmax in fp32 errs by 3e-6 itself, and where a
# processor rounds a product by its shape, the three log-sum-exps are apart (6.7e-6 on one with AVX2).
# A flash backward takes the softmax from its log-sum-exp, near 40 here: half a unit in its last place is 2e-6 of the weights.
@KERNELS
@pytest.mark.parametrize("own_cell", [0.0, 4.0, 40.0, -40.0])
def test_fused_merge_is_one_masked_softmax_in_values_and_gradients(own_cell, kernel):
    atol = 8e-6 if own_cell == 40 and kernel == XLA else 3e-6
    check_fused(kernel, fused_inputs(own_cell), atol=atol, gradient_atol=5e-6)


@KERNELS
@pytest.mark.parametrize(("views", "times"), [(1, 3), (2, 1)])
def test_fused_merge_holds_for_one_view_and_for_one_time(views, times, kernel):
    check_fused(kernel, fused_inputs(0.0, views, times), atol=3e-6, gradient_atol=5e-6)


def inputs_with_other(own_cell: float, **sizes: int) -> list[np.ndarray]:
    """q, k, v, and keys and values for the other axis, of which the own cell's are turned towards its queries likewise."""
    q, k, v = fused_inputs(own_cell, **sizes)
    turned = k - normal(*k.shape, seed=1).astype(np.float32)
    return [q, k, v, turned + normal(*k.shape, seed=3), normal(*v.shape, seed=4)]


@KERNELS
@pytest.mark.parametrize("own_cell", [0.0, 4.0, -40.0])
def test_other_keys_and_values_replace_those_of_the_other_views_of_the_own_time_and_no_more(own_cell, kernel):
    check_fused(kernel, inputs_with_other(own_cell), atol=3e-6, gradient_atol=5e-6)


@KERNELS
def test_other_keys_and_values_that_are_the_own_change_nothing(kernel):
    q, k, v = map(jnp.asarray, fused_inputs(4.0))
    np.testing.assert_array_equal(*(fused_attention(q, k, v, kernel, other=other) for other in (None, (k, v))))


@pytest.mark.parametrize("kernel", [XLA, CUDNN])
def test_other_keys_and_values_in_bf16_are_as_exact_as_bf16(kernel):
    check_fused(kernel, inputs_with_other(0.0, size=8), atol=0.03, gradient_atol=0.04, dtype=jnp.bfloat16)


@pytest.mark.parametrize("kernel", [XLA, CUDNN])
@pytest.mark.parametrize("own_cell", [0.0, 40.0])
def test_fused_merge_in_bf16_is_as_exact_as_bf16(own_cell, kernel):
    """Three outputs of 8 bits each are summed, and the log-sum-exps that weigh them must not be rounded likewise."""
    check_fused(kernel, fused_inputs(own_cell, size=8), atol=0.03, gradient_atol=0.04, dtype=jnp.bfloat16)


def test_log_sum_exps_in_the_thousands_pass_the_swap_exactly_beside_bf16():
    """Keys of all cells alike: A and B weigh as their numbers of cells, whatever is added to all logits."""
    rng = np.random.default_rng(0)
    keys = np.zeros((1, 2, 3, 1, 1, 4))
    keys[..., 0] = 128  # logits of 128 * 64 / 2
    q, v = np.full_like(keys, 64), rng.integers(-8, 8, keys.shape).astype(np.float64)
    out = fused_attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, keys, v)))
    mean = (v.sum(2, keepdims=True) + v.sum(1, keepdims=True) - v) / 4
    np.testing.assert_allclose(out.astype(jnp.float32), mean, atol=0.05)


def count(jaxpr, counts: collections.Counter, used_of: str = "pallas_call") -> collections.Counter:
    """How often each primitive occurs, under its own name where it has one; kernels only where their result is used."""
    used = {id(x) for eqn in jaxpr.eqns for x in eqn.invars} | {id(x) for x in jaxpr.outvars}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == used_of and not any(id(x) in used for x in eqn.outvars):
            continue
        counts[eqn.params.get("name") or eqn.primitive.name] += 1
        if eqn.primitive.name != used_of:
            for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                sub = getattr(sub, "jaxpr", sub)
                if hasattr(sub, "eqns"):
                    count(sub, counts)
    return counts


def counted(function, *arguments) -> collections.Counter:
    """What a function's program consists of, without what nothing depends on."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], collections.Counter())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_attention_swaps_views_and_times_twice_forward_and_twice_backward(dtype):
    @jax.jit
    def swap(x, views):
        return swap_view_time(x, views)

    arrays = [jnp.asarray(x, dtype) for x in fused_inputs(0.0)]
    fused = functools.partial(fused_attention, swap=swap)
    assert counted(fused, *arrays)["swap"] == 2
    assert counted(lambda *x: jax.vjp(fused, *x)[1](x[0]), *arrays)["swap"] == 4


@pytest.mark.parametrize(("attention", "parts"), [(clip_attention, 1), (fused_attention, 3)])
@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("matmuls", 1), ("attention_out", 1), ("full", 2)])
def test_flash_kernel_runs_its_forward_again_only_where_its_result_is_not_kept(attention, parts, remat, runs):
    def layer(x, weight):
        q, k, v = (jnp.einsum("...i,ij->...j", x, weight[n]) for n in range(3))
        return x + jnp.sin(jnp.einsum("...i,ij->...j", attention(q, k, v, SPLASH), weight[3])), None

    policy = REMAT_POLICIES[remat]
    body = layer if policy is None else jax.checkpoint(layer, policy=policy)
    x, weights = jnp.zeros((1, VIEWS, TIMES, TOKENS, HEADS, SIZE)), jnp.zeros((5, 4, SIZE, SIZE))
    kernels = counted(jax.grad(lambda w: jnp.sum(jax.lax.scan(body, x, w)[0])), weights)
    forward, backward = "splash_mha_fwd_segmented_residuals", "splash_mha_dkv_segmented_no_residuals"
    assert (kernels[forward], kernels[backward]) == (runs * parts, parts)


def test_own_cell_holds_nearly_all_weight_where_it_is_said_to_dominate():
    q, k, v = (jnp.asarray(x) for x in fused_inputs(40.0))
    _, own = attend_with_lse(q, k, v)
    _, view = attend_with_lse(*(rearrange(x, "b v t s h e -> b v (t s) h e") for x in (q, k, v)))
    view = rearrange(view, "b v (t s) h e -> b v t s h e", t=TIMES)
    assert float(jnp.median(view - own)) < 0.01
