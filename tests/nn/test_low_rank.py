"""Low-rank additions: their formula, nothing at first, and the same model once they are merged into the kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from fourreal.errors import UserError
from fourreal.models import GridDiT, GridDiTConfig, VideoDiT
from fourreal.nn.linear import linear
from fourreal.nn.low_rank import LowRank
from fourreal.training.config import TrainConfig

MAPS = ("attention.*", "mlp.in_", "cross.text.value")


def test_map_adds_its_product_to_the_kernel_s():
    rng = np.random.default_rng(0)
    base = linear(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    base.bias[...] = rng.normal(size=4)
    found = LowRank(base, 2, 3.0, rngs=nnx.Rngs(1))
    x = rng.normal(size=(5, 6))
    np.testing.assert_array_equal(found(x), base(x))
    assert 0 < np.abs(found.lora_down[...]).max() <= 6**-0.5
    found.lora_up[...] = rng.normal(size=(2, 4))
    kernel, bias, down, up = (
        np.asarray(part[...], np.float64) for part in (base.kernel, base.bias, found.lora_down, found.lora_up)
    )
    np.testing.assert_allclose(found(x), x @ (kernel + 3 * down @ up) + bias, atol=1e-5)  # fp32 sums of numbers near 10


@pytest.fixture
def grid(tiny):
    data = tiny.grid(2, 3)
    text = np.random.default_rng(1).normal(size=(2, 5, 10)).astype(np.float32)
    return lambda config, params: nnx.jit(lambda model, *of: model(*of))(
        filled(config, params), data["x"], data["sigma"], data["given"], {"text": text}
    )


def filled(config, params) -> GridDiT:
    model = GridDiT(VideoDiT(config, rngs=nnx.Rngs(0)), GridDiTConfig("soft"), rngs=nnx.Rngs(1))
    nnx.update(model, params)
    return model


def perturbed(tiny, config) -> dict:
    return tiny.params(config, GridDiTConfig("soft"))


def without(params: dict) -> dict:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if "lora" not in path[-1]})


def test_a_fresh_addition_changes_no_bit_of_the_model(tiny, grid):
    plain, config = tiny.config(text_width=10), tiny.config(text_width=10, lora_rank=2, lora_maps=MAPS)
    params = perturbed(tiny, config)
    flat = traverse_util.flatten_dict(params)
    ups = [path for path in flat if path[-1] == "lora_up"]
    assert len(ups) == 6
    silent = traverse_util.unflatten_dict(flat | {path: jnp.zeros_like(flat[path]) for path in ups})
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(grid(config, silent), grid(plain, without(silent)))


@pytest.mark.parametrize("rank", [1, 4])
def test_merged_into_the_kernels_it_is_the_same_model(tiny, grid, rank):
    """Rank 4 is twice the heads: were the reordering of queries and keys applied to what reads, too, its shapes would fit."""
    config = tiny.config(text_width=10, lora_rank=rank, lora_alpha=3.0, lora_maps=MAPS)
    params = perturbed(tiny, config)
    flat = traverse_util.flatten_dict(params)
    merged = dict(flat)
    for path in flat:
        if path[-1] == "lora_down":
            up = flat[*path[:-1], "lora_up"]
            merged[*path[:-1], "kernel"] = flat[*path[:-1], "kernel"] + 3 / rank * jnp.einsum(
                "lir,lro->lio", flat[path], up
            )
    merged = without(traverse_util.unflatten_dict(merged))
    with jax.default_matmul_precision("highest"):
        found, expected = grid(config, params), grid(tiny.config(text_width=10), merged)
        plain = grid(tiny.config(text_width=10), without(params))
    assert np.abs(found - plain).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)  # fp32 sums in another order


def test_maps_that_there_are_not_and_impossible_ranks_are_refused(tiny):
    with pytest.raises(UserError, match=r"lora_maps has atention\.\*: a block's linear maps are attention\.query"):
        VideoDiT(tiny.config(lora_rank=2, lora_maps=("atention.*",)), rngs=nnx.Rngs(0))
    for wrong in ({"lora_rank": -1}, {"lora_rank": 10**6}, {"lora_rank": 2, "lora_alpha": 0.0}):
        with pytest.raises(UserError, match="lora_rank"):
            tiny.config(**wrong)
    with pytest.raises(UserError, match="lora_maps empty"):
        tiny.config(lora_rank=2, lora_maps=())
    with pytest.raises(UserError, match=r"trains is 'lora' and the model has none: give model\.lora_rank"):
        TrainConfig(name="x", model=tiny.config(), trains="lora")
