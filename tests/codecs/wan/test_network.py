"""Wan's autoencoders through diffusers' own code and through ours compute the same, in pieces and whole.

`tests/fixtures/make_wan_vae_fixture.py` made the fixture: diffusers' inputs and outputs at random weights.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from wan_vae_weights import random_weights

from fourreal.codecs.wan.config import WanVAEConfig
from fourreal.codecs.wan.layers import Past
from fourreal.codecs.wan.network import decode, decode_piece, encode, encode_piece, from_patches, to_patches
from fourreal.codecs.wan.parameters import from_diffusers, random_parameters
from fourreal.codecs.wan.tiles import Tiles
from fourreal.grid import to_unit

FIXTURE = Path(__file__).parents[2] / "fixtures" / "wan_vae.safetensors"
AS_DIFFUSERS, AS_WHOLE = 1e-4, 1e-5  # largest difference of a number, over the largest number
SMALL = {"base_dim": 8, "decoder_base_dim": 8, "z_dim": 4, "num_res_blocks": 1}
SMALL |= {"latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (1.0, 2.0, 0.5, 1.5)}


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def wan(request) -> SimpleNamespace:
    """The arrays of one generation, its config and our parameters."""
    with safe_open(FIXTURE, framework="numpy") as file:
        about = json.loads(file.metadata()[request.param])
        arrays = {name.split(".", 2)[2]: file.get_tensor(name) for name in file.keys() if name.startswith(request.param)}  # noqa: SIM118 (not a dict)
    config = WanVAEConfig.from_diffusers(about["config"])
    parameters = from_diffusers(random_weights(about["shapes"], about["seed"]), config)
    return SimpleNamespace(config=config, parameters=parameters, tiles=Tiles(*about["tiles"]), **arrays)


def run(function, wan, *arguments, **options) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda p, x: function(p, wan.config, x, **options))(wan.parameters, *arguments))


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_encoding_equals_diffusers(wan):
    assert apart(run(encode, wan, to_unit(wan.frames)), wan.latents) < AS_DIFFUSERS


def test_decoding_equals_diffusers(wan):
    assert apart(run(decode, wan, wan.noise), wan.decoded) < AS_DIFFUSERS


def test_tiled_encoding_equals_diffusers(wan):
    found = run(encode, wan, to_unit(wan.tiled_frames), tiles=wan.tiles)
    assert apart(found, wan.tiled_latents) < AS_DIFFUSERS


def test_tiled_decoding_equals_diffusers(wan):
    assert apart(run(decode, wan, wan.tiled_noise, tiles=wan.tiles), wan.tiled_decoded) < AS_DIFFUSERS
