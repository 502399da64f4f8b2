"""Attention against a dense softmax in fp64, or in fp32 where gradients are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from fourreal.models.attention import attend, attend_with_lse, clip_attention, fused_attention

VIEWS, TIMES, TOKENS, HEADS, SIZE = 2, 3, 4, 2, 6


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


def same_view_or_time() -> np.ndarray:
    """Which of two tokens, numbered as (v t s), may see each other."""
    view, time = (np.repeat(axis.ravel(), TOKENS) for axis in np.indices((VIEWS, TIMES)))
    return (view[:, None] == view) | (time[:, None] == time)


def fused_inputs(own_cell: float) -> list[np.ndarray]:
    """q, k, v of a grid; a cell's own keys are turned towards its queries by `own_cell`."""
    q, k, v = (normal(2, VIEWS, TIMES, TOKENS, HEADS, SIZE, seed=seed).astype(np.float32) for seed in range(3))
    mean = q.mean(axis=3, keepdims=True)
    return [q, k + own_cell * mean / np.linalg.norm(mean, axis=-1, keepdims=True) ** 2, v]


def reference(q, k, v):
    """The fused pattern as one dense masked softmax over all cells of the grid."""
    joined = [rearrange(x, "b v t s h e -> b (v t s) h e") for x in (q, k, v)]
    return rearrange(dense(*joined, same_view_or_time()), "b (v t s) h e -> b v t s h e", v=VIEWS, t=TIMES)


def gradients_of(function):
    """The compiled gradients of a weighted sum of outputs, by q, k and v."""
    return jax.jit(jax.grad(lambda weight, *x: jnp.sum(weight * function(*x)), argnums=(1, 2, 3)))


FUSED = jax.jit(fused_attention)
FUSED_GRADIENTS, REFERENCE_GRADIENTS = gradients_of(fused_attention), gradients_of(reference)


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


# 40: the own cell holds all of the weight, and e^la + e^lb - e^lc is a difference of equals; -40: it holds none
@pytest.mark.parametrize("own_cell", [0.0, 4.0, 40.0, -40.0])
def test_fused_merge_is_one_masked_softmax_in_values_and_gradients(own_cell):
    inputs, weight = fused_inputs(own_cell), normal(2, VIEWS, TIMES, TOKENS, HEADS, SIZE, seed=9).astype(np.float32)
    exact = reference(*(x.astype(np.float64) for x in inputs))
    arrays = [jnp.asarray(x) for x in inputs]
    np.testing.assert_allclose(FUSED(*arrays), exact, atol=3e-6)
    gradients, expected = (of(weight, *arrays) for of in (FUSED_GRADIENTS, REFERENCE_GRADIENTS))
    scale = max(float(jnp.abs(x).max()) for x in expected)  # keys turned far make large gradients of q
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6 * scale)


def test_own_cell_holds_nearly_all_weight_where_it_is_said_to_dominate():
    q, k, v = (jnp.asarray(x) for x in fused_inputs(40.0))
    _, own = attend_with_lse(q, k, v)
    _, view = attend_with_lse(*(rearrange(x, "b v t s h e -> b v (t s) h e") for x in (q, k, v)))
    view = rearrange(view, "b v (t s) h e -> b v t s h e", t=TIMES)
    assert float(jnp.median(view - own)) < 0.01
