"""What trains: exactly these parameters for each of its values."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from fourreal.models import GridDiTConfig
from fourreal.models.build import model_table
from fourreal.training.config import TrainConfig
from fourreal.training.state import TRAINED, fresh_state, join_params, split_params

GRID = GridDiTConfig("soft", "zero", "mean")


@pytest.fixture
def model(tiny):
    """A base that is told everything there is."""
    return tiny.config(hints=True, cameras=True, text_width=10, lora_rank=2)


@pytest.fixture
def params(tiny, model) -> dict:
    return tiny.params(model, GRID)


@pytest.fixture
def split(model, params):
    return lambda trains: split_params(params, model_table(model, GRID), trains)


def names(tree: dict) -> set[str]:
    return set(traverse_util.flatten_dict(tree, sep="."))


def below(path: str, *layers: str) -> set[str]:
    return {f"{path}.{layer}.{kind}" for layer in layers for kind in ("kernel", "bias")}


def attention(path: str) -> set[str]:
    return below(path, "query", "key", "value", "out") | {f"{path}.query_norm.scale", f"{path}.key_norm.scale"}


SYNC = {
    "sync.mod_linear.kernel",
    "sync.mod_linear.bias",
    "sync.mod_linear.modulation",
    "sigma_projection.linear.kernel",
    "sigma_projection.linear.bias",
}
CONDITIONS = {
    "base.given.vector",
    "base.context.table",
    "base.conditions.hints.embed.kernel",
    "base.conditions.hints.embed.bias",
    "base.conditions.cameras.embed.kernel",
    "base.conditions.cameras.embed.bias",
    "base.head.copy_gate.kernel",
    "base.head.copy_gate.bias",
}
ATTENTION = attention("base.blocks.attention")
LORA = {
    f"base.blocks.attention.{name}.{part}"
    for name in ("query", "key", "value", "out")
    for part in ("lora_down", "lora_up")
}
BASE = {
    *below("base", "patch_embed", "time_embed.in_", "time_embed.out", "time_projection", "head.out"),
    *below("base.blocks", "mlp.in_", "mlp.out"),
    *below("base.conditions.text.embed", "in_", "out"),
    *attention("base.blocks.cross.text"),
    "base.blocks.cross.text.norm.scale",
    "base.blocks.cross.text.norm.bias",
    "base.blocks.modulation",
    "base.head.modulation",
}
LISTED = {
    "all": SYNC | CONDITIONS | ATTENTION | LORA | BASE,
    "attention": SYNC | CONDITIONS | ATTENTION,
    "lora": SYNC | CONDITIONS | LORA,
    "sync": SYNC,
    "sync_and_conditions": SYNC | CONDITIONS,
}


@pytest.mark.parametrize("trains", LISTED)
def test_training_groups_hold_exactly_the_listed_paths(params, split, trains):
    trained, frozen = split(trains)
    assert names(trained) == LISTED[trains]
    assert names(frozen) == names(params) - LISTED[trains]


ONE_STREAM_SYNC = {
    "sync.kernel",
    "sync.bias",
    "sync.modulation",
    "sigma_projection.linear.kernel",
    "sigma_projection.linear.bias",
}


@pytest.mark.parametrize("trains", LISTED)
@pytest.mark.parametrize("fusion", ["hard", "sequential", "fused"])
def test_sync_of_other_fusions_is_the_layer_after_every_block_and_the_projection_of_sigma(tiny, model, fusion, trains):
    """`matched` gives those of one stream such a layer."""
    grid = GridDiTConfig(fusion, matched=fusion != "hard")
    params = tiny.params(model, grid)
    trained, frozen = split_params(params, model_table(model, grid), trains)
    own = SYNC if fusion == "hard" else ONE_STREAM_SYNC
    assert names(trained) == (LISTED[trains] - SYNC) | own
    assert names(frozen) == LISTED["all"] - SYNC - LISTED[trains]


@pytest.mark.parametrize("fusion", ["sequential", "fused", "none"])
def test_fusion_without_layers_of_its_own_has_nothing_to_train_as_sync(tiny, model, fusion):
    grid = GridDiTConfig(fusion)
    params = tiny.params(model, grid)
    assert names(params) == LISTED["all"] - SYNC
    assert names(split_params(params, model_table(model, grid), "sync")[0]) == set()


def test_every_group_is_listed():
    assert LISTED.keys() == TRAINED.keys()


def test_count_of_trained_parameters_is_that_of_their_shapes(split):
    """Two layers of ModLinear 2d -> 2d with a 2 x 2 x d table, one projection d -> 4d, and what conditions the base."""
    d, area, ray = 24, 4, 6
    mod_linear = 2 * d * 2 * d + 2 * d + 4 * d
    sync = 2 * mod_linear + (d * 4 * d + 4 * d)
    hints, cameras, gates = 2 * area * 4 * d + d, ray * area * d + d, d * 3 * area + 3 * area
    conditions = d + 3 * 6 * d + hints + cameras + gates
    for trains, expected in (("sync", sync), ("sync_and_conditions", sync + conditions)):
        assert sum(leaf.size for leaf in jax.tree.leaves(split(trains)[0])) == expected


@pytest.mark.parametrize("trains", LISTED)
def test_parts_join_to_the_whole(params, split, trains):
    joined = join_params(*split(trains))
    assert names(joined) == names(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_average_and_optimizer_exist_for_the_trained_part_only(model, params):
    config = TrainConfig("x", model, grid=GRID, trains="sync")
    state = fresh_state(params, config)
    assert int(state["step"]) == 0
    assert names(state["params"]) == names(state["ema"]) == SYNC
    trained = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state["opt"]) if leaf.ndim)
    assert moments == 2 * trained
    assert all(
        a is not b for a, b in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(state["ema"]), strict=True)
    )  # buffers of their own, since the step donates them
