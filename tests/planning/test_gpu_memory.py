"""What layers keep for backward, counted by hand and read from a jaxpr."""

import jax
import jax.numpy as jnp
import pytest

from fourreal.planning.gpu_memory import kept_for_backward

DEPTH, ROWS, WIDTH = 5, 8, 16


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (jax.checkpoint_policies.nothing_saveable, 1),  # a layer's input
        (jax.checkpoint_policies.dots_saveable, 2),  # and the product
        (None, 2),  # the input for the weight's gradient, the cosine for that of the sine
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layers_keep_what_their_policy_says_a_layer_and_other_loops_do_not_count(policy, kept, dtype):
    def layer(x, w):
        return jnp.sin(x @ w), None

    def loss(weights, x):
        body = layer if policy is None else jax.checkpoint(layer, policy=policy)
        x, _ = jax.lax.scan(layer, x, weights[:3])
        return jnp.sum(jax.lax.scan(body, x, weights)[0])

    weights, x = jnp.zeros((DEPTH, WIDTH, WIDTH), dtype), jnp.zeros((ROWS, WIDTH), dtype)
    jaxpr = jax.make_jaxpr(jax.jit(jax.grad(loss)))(weights, x).jaxpr
    assert kept_for_backward(jaxpr, DEPTH) == kept * DEPTH * ROWS * WIDTH * x.dtype.itemsize
