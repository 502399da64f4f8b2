"""What trains: the parts of the parameters for `all`, `attention` and `sync`."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from fourreal.config import TrainConfig
from fourreal.models import GridDiTConfig
from fourreal.training.state import fresh_state, join_params, split_params

GRID = GridDiTConfig("soft", "zero", "mean")


@pytest.fixture
def params(tiny) -> dict:
    return tiny.params(tiny.config(hints=True), GRID)


def names(tree: dict) -> set[str]:
    return set(traverse_util.flatten_dict(tree, sep="."))


SYNC = {
    "sync.mod_linear.kernel",
    "sync.mod_linear.bias",
    "sync.mod_linear.modulation",
    "sigma_projection.linear.kernel",
    "sigma_projection.linear.bias",
    "base.given",
    "base.context",
    "base.hint_embed.kernel",
    "base.hint_embed.bias",
    "base.head.copy_gate.kernel",
    "base.head.copy_gate.bias",
}
ATTENTION = {
    f"base.blocks.attention.{part}"
    for part in (
        *(f"{layer}.{kind}" for layer in ("query", "key", "value", "out") for kind in ("kernel", "bias")),
        "query_norm.scale",
        "key_norm.scale",
    )
}


def test_all_trains_everything_and_freezes_nothing(params):
    trained, frozen = split_params(params, "all")
    assert names(trained) == names(params) and frozen == {}


def test_sync_trains_the_sync_layers_the_given_vector_the_hints_and_the_contexts(params):
    trained, frozen = split_params(params, "sync")
    assert names(trained) == SYNC
    assert names(frozen) == names(params) - SYNC


def test_attention_trains_the_self_attention_besides(params):
    trained, frozen = split_params(params, "attention")
    assert names(trained) == SYNC | ATTENTION
    assert names(frozen) == names(params) - SYNC - ATTENTION


def test_attention_leaves_the_cross_attention_frozen(tiny):
    trained, _ = split_params(tiny.params(tiny.config(text_width=10), GRID), "attention")
    assert not any("cross_attention" in name or "text_embed" in name for name in names(trained))


def test_count_of_trained_sync_parameters_is_that_of_their_shapes(tiny, params):
    """Two layers of ModLinear 2d -> 2d with a 2 x 2 x d table, one projection d -> 4d, and what conditions the base."""
    d, area = 24, 4
    mod_linear = 2 * d * 2 * d + 2 * d + 4 * d
    conditions = d + 3 * 6 * d + (2 * area * 4 * d + d) + (d * 3 * area + 3 * area)
    expected = 2 * mod_linear + (d * 4 * d + 4 * d) + conditions
    assert sum(leaf.size for leaf in jax.tree.leaves(split_params(params, "sync")[0])) == expected


def test_sync_trains_the_map_of_the_cameras(tiny):
    trained, _ = split_params(tiny.params(tiny.config(cameras=True), GRID), "sync")
    assert {"base.camera_embed.kernel", "base.camera_embed.bias"} <= names(trained)


@pytest.mark.parametrize("trains", ["all", "attention", "sync"])
def test_parts_join_to_the_whole(params, trains):
    joined = join_params(*split_params(params, trains))
    assert names(joined) == names(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_average_and_optimizer_exist_for_the_trained_part_only(tiny, params):
    config = TrainConfig("x", tiny.config(hints=True), grid=GRID, trains="sync")
    state = fresh_state(params, config)
    assert int(state["step"]) == 0
    assert names(state["params"]) == names(state["ema"]) == SYNC
    trained = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state["opt"]) if leaf.ndim)
    assert moments == 2 * trained
    assert all(
        a is not b for a, b in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(state["ema"]), strict=True)
    )  # buffers of their own, since the step donates them
