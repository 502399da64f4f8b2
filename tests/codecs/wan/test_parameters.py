"""Names and shapes of diffusers' tensors become our parameters, and nothing is lost, doubled or taken wrongly."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from wan_vae_weights import random_weights

from fourreal.codecs.wan.config import WAN_2_1, WAN_2_2, WanVAEConfig
from fourreal.codecs.wan.parameters import from_diffusers, parameter_table, random_parameters, read_parameters
from fourreal.errors import MissingFile, UserError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "wan_vae.safetensors"


def diffusers_says(generation: str) -> dict:
    with safe_open(FIXTURE, framework="numpy") as file:
        return json.loads(file.metadata()[generation])


@pytest.fixture(scope="module")
def config() -> WanVAEConfig:
    return WanVAEConfig.from_diffusers(diffusers_says("2.1")["config"])


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return random_weights(diffusers_says("2.1")["shapes"], seed=0)


@pytest.fixture
def folder(tmp_path, state) -> Path:
    """As diffusers writes it."""
    (tmp_path / "config.json").write_text(json.dumps(diffusers_says("2.1")["config"]))
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    return tmp_path


@pytest.mark.parametrize("generation", ["2.1", "2.2"])
def test_table_lists_the_tensors_of_diffusers_once_each_with_their_shapes(generation):
    about = diffusers_says(generation)
    entries = parameter_table(WanVAEConfig.from_diffusers(about["config"])).values()
    assert len({entry.theirs for entry in entries}) == len(entries)
    assert {entry.theirs: list(entry.shape) for entry in entries} == about["shapes"]


@pytest.mark.parametrize(("config", "millions"), [(WAN_2_1, 126.9), (WAN_2_2, 704.7)])
def test_released_sizes_have_the_released_numbers_of_parameters(config, millions):
    shapes = jax.eval_shape(lambda: random_parameters(config))
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("generation", ["2.1", "2.2"])
def test_random_parameters_have_the_tree_of_converted_ones(generation):
    about = diffusers_says(generation)
    config = WanVAEConfig.from_diffusers(about["config"])
    converted = from_diffusers(random_weights(about["shapes"], 0), config)
    fresh = jax.eval_shape(lambda: random_parameters(config))
    assert jax.tree.map(np.shape, converted) == jax.tree.map(lambda x: x.shape, fresh)


def test_missing_unknown_and_misshapen_tensors_are_named(state, config):
    with pytest.raises(UserError, match=r"misses 1 tensors \(quant_conv.bias\)"):
        from_diffusers({name: x for name, x in state.items() if name != "quant_conv.bias"}, config)
    with pytest.raises(UserError, match=r"has unknown 1 tensors \(encoder.extra\)"):
        from_diffusers(state | {"encoder.extra": np.zeros(1)}, config)
    with pytest.raises(UserError, match=r"tensor quant_conv.bias has shape \[3\]: .* expects \[8\]"):
        from_diffusers(state | {"quant_conv.bias": np.zeros(3)}, config)


def test_a_folder_of_diffusers_is_read_also_in_bfloat16_and_in_several_files(folder, state, config):
    wanted = from_diffusers(state, config)
    jax.tree.map(np.testing.assert_array_equal, read_parameters(folder, config), wanted)
    names, half = sorted(state), len(state) // 2
    rounded = {name: x.astype(ml_dtypes.bfloat16) for name, x in state.items()}
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    save_file({name: rounded[name] for name in names[:half]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: rounded[name] for name in names[half:]}, folder / "model-00002-of-00002.safetensors")
    found = read_parameters(folder, config)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2**-8), found, wanted)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype("float32")}


def test_what_is_wrong_with_a_folder_is_named(folder, state, config):
    with pytest.raises(UserError, match="base_dim is 8, the codec's is 160"):
        read_parameters(folder, WAN_2_2)
    save_file({"quant_conv.bias": state["quant_conv.bias"]}, folder / "second.safetensors")
    with pytest.raises(UserError, match=r"two files hold quant_conv.bias"):
        read_parameters(folder, config)
    save_file({"quant_conv.bias": np.float32([np.nan])}, folder / "second.safetensors")
    with pytest.raises(UserError, match=r"second.safetensors: the tensor quant_conv.bias .* not finite"):
        read_parameters(folder, config)
    (folder / "second.safetensors").write_bytes(b"no such format")
    with pytest.raises(UserError, match=r"second.safetensors is broken"):
        read_parameters(folder, config)
    with pytest.raises(MissingFile, match=r"holds no config.json"):
        read_parameters(folder / "vae", config)


def test_a_config_of_other_networks_is_refused(config):
    with pytest.raises(UserError, match="attn_scales"):
        WanVAEConfig.from_diffusers(diffusers_says("2.1")["config"] | {"attn_scales": [0.5]})
    with pytest.raises(UserError, match="latents_mean has 16 entries: expected one a latent channel, 8"):
        WanVAEConfig(z_dim=8)
    with pytest.raises(UserError, match="temperal_downsample has 3 entries"):
        WanVAEConfig(dim_mult=(1, 2))
    with pytest.raises(UserError, match=r"decoder_base_dim 96, .* as dim_mult=\(1, 2, 4, 4\)"):
        WanVAEConfig(is_residual=True, dim_mult=(1, 2, 4, 5))


def test_released_configs_have_the_released_factors():
    assert (WAN_2_1.time_factor, WAN_2_1.space_factor, WAN_2_1.z_dim) == (4, 8, 16)
    assert (WAN_2_2.time_factor, WAN_2_2.space_factor, WAN_2_2.z_dim) == (4, 16, 48)
