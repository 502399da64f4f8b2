"""FLOPs against counts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, split_model
from fourreal.nn import attention
from fourreal.nn.kernels import Kernel
from fourreal.training.cost import compiled_bytes, matmul_flops


def test_a_matmul_costs_two_flops_a_multiply_add():
    a, b = np.zeros((3, 4, 5), np.float32), np.zeros((3, 5, 7), np.float32)
    assert matmul_flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5 * 7
    assert matmul_flops(lambda a, b: jnp.einsum("bij,bjk->ik", a, b), a, b) == 2 * 4 * 7 * 3 * 5


def test_a_convolution_costs_its_kernel_at_every_output_and_a_group_sees_its_own_inputs_alone():
    x, kernel = np.zeros((2, 9, 11, 6), np.float32), np.zeros((3, 5, 6, 4), np.float32)
    names = ("NHWC", "HWIO", "NHWC")
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(2, 1), padding="VALID", dimension_numbers=names
    )
    assert matmul_flops(convolve, x, kernel) == 2 * (2 * 4 * 7 * 4) * (3 * 5 * 6)
    grouped = functools.partial(convolve, feature_group_count=2)
    assert matmul_flops(grouped, x, kernel[:, :, :3]) == 2 * (2 * 4 * 7 * 4) * (3 * 5 * 3)


def test_body_of_a_scan_counts_as_often_as_it_runs_also_under_jit_and_checkpoint():
    x, w = np.zeros((4, 8), np.float32), np.zeros((6, 8, 8), np.float32)
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    assert matmul_flops(jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]), x, w) == 6 * 2 * 4 * 8 * 8


def test_gradient_of_a_linear_map_costs_twice_its_value():
    x, w = np.zeros((4, 8), np.float32), np.zeros((8, 8), np.float32)
    assert matmul_flops(jax.grad(lambda w, x: jnp.sum((x @ w) ** 2), argnums=(0, 1)), w, x) == 3 * 2 * 4 * 8 * 8


def test_model_costs_what_its_layers_cost_by_hand(tiny):
    """Two streams of a soft-synced grid, 2 x 3 cells of 4 x 4 pixels: 4 tokens a cell."""
    base, grid = tiny.config(), GridDiTConfig("soft")
    views, times, tokens, d, m, patch = 2, 3, 4, base.width, base.mlp_width, 2 * 2 * 3
    cells, n = views * times, views * times * tokens
    embed_and_heads = 2 * n * patch * d + 2 * (
        2 * n * patch * d + 2 * n * (2 * 2) * d
    )  # with the copy gate of each pixel
    time = 2 * cells * (base.frequency_width * d + d * d + d * 6 * d + d * 4 * d)  # and the sync's projection
    linear = 2 * n * (4 * d * d + 2 * d * m)
    attention_t = 2 * 2 * views * (times * tokens) ** 2 * d
    attention_v = 2 * 2 * times * (views * tokens) ** 2 * d
    sync = 2 * 2 * n * 2 * d * d
    expected = embed_and_heads + time + base.depth * (2 * linear + attention_t + attention_v + sync)
    graph, shapes = split_model(base, grid)
    x, sigma = np.zeros((1, views, times, 4, 4, 3), np.float32), np.zeros((1,), np.float32)
    assert matmul_flops(make_forward(graph), shapes, x, sigma) == expected


def test_cudnns_attention_counts_two_matmuls_forward_and_five_backward(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    q, k = (jnp.zeros((3, 2, length, 4, 16), jnp.bfloat16) for length in (300, 70))
    attend = functools.partial(attention.attend, kernel=Kernel("cudnn"))
    matmul = 2 * 3 * 2 * 300 * 70 * 4 * 16
    assert matmul_flops(attend, q, k, k) == 2 * matmul
    assert matmul_flops(lambda *x: jax.vjp(attend, *x)[1](q), q, k, k) == 7 * matmul


def test_compiled_memory_holds_at_least_the_arguments():
    compiled = jax.jit(lambda x: x @ x).lower(np.zeros((64, 64), np.float32)).compile()
    found = compiled_bytes(compiled)
    assert found["arguments"] == 64 * 64 * 4 and found["total"] >= 2 * 64 * 64 * 4


def test_shard_map_counts_on_every_device():
    mesh = jax.make_mesh(
        (2, 2), ("a", "b"), devices=jax.local_devices()[:4], axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    cut, x = jax.P("a"), np.zeros((4, 8), np.float32)
    with jax.set_mesh(mesh):
        own = jax.shard_map(lambda x: x @ x.T, in_specs=cut, out_specs=cut)  # [2, 8] x [8, 2], twice each
        partly = jax.shard_map(lambda x: x @ x.T, in_specs=cut, out_specs=cut, axis_names={"a"})
        assert matmul_flops(own, x) == 4 * 2 * 2 * 2 * 8
        assert matmul_flops(partly, x) == 2 * 2 * 2 * 2 * 8


def test_pallas_kernel_counts_at_every_point_of_its_grid():
    """Splash attention multiplies queries and keys, weights and values: 2 matmuls of its padded lengths forward; 4 for
    the keys' and 3 for the queries' gradients, which both compute the logits anew, and the product of output and gradient."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, heads, length, size = 3, 2, 512, 64
    mask = splash.MultiHeadMask([splash.FullMask((length, length))] * heads)
    blocks = dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 256)
    inside = {"block_kv_compute": 128, "block_kv_dkv_compute": 128}
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=splash.BlockSizes(**blocks, **inside))
    x = np.zeros((batch, heads, length, size), np.float32)
    one = 2 * batch * heads * length**2 * size
    assert matmul_flops(jax.vmap(kernel), x, x, x) == 2 * one
    gradient = jax.grad(lambda q, k, v: jnp.sum(jax.vmap(kernel)(q, k, v)), argnums=(0, 1, 2))
    assert matmul_flops(gradient, x, x, x) == (2 + 4 + 3) * one + 2 * x.size


def test_of_a_conditions_branches_the_dearest_counts():
    x = np.zeros((4, 4), np.float32)
    assert matmul_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x @ x), x) == 2 * 2 * 4**3
