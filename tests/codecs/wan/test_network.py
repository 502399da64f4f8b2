"""Wan's autoencoders through diffusers' own code and through ours compute the same, in pieces and whole.

`tests/fixtures/make_wan_vae_fixture.py` made the fixture: diffusers' inputs and outputs at random weights.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from wan_vae_weights import random_weights

from fourreal.codecs.wan.config import WanVAEConfig
from fourreal.codecs.wan.layers import Past
from fourreal.codecs.wan.network import decode, decode_piece, encode, encode_piece, from_patches, to_patches
from fourreal.codecs.wan.parameters import from_diffusers, parameter_table
from fourreal.codecs.wan.tiles import Tiles
from fourreal.errors import UserError
from fourreal.grid import to_unit

FIXTURE = Path(__file__).parents[2] / "fixtures" / "wan_vae.safetensors"
AS_DIFFUSERS, AS_WHOLE = 1e-4, 1e-5  # largest difference of a number, over the largest number


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def wan(request) -> SimpleNamespace:
    """The arrays of one generation, its config and our parameters."""
    with safe_open(FIXTURE, framework="numpy") as file:
        about = json.loads(file.metadata()[request.param])
        names = [name for name in file.keys() if name.startswith(request.param)]  # noqa: SIM118 (not a dict)
        arrays = {name.removeprefix(f"{request.param}."): file.get_tensor(name) for name in names}
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


def whole_encoding(parameters, config, frames) -> jax.Array:
    moments = encode_piece(parameters, config, to_patches(frames, config.patch_size), Past())
    return (moments - np.float32(config.latents_mean)) / np.float32(config.latents_std)


def whole_decoding(parameters, config, latents) -> jax.Array:
    moments = latents * np.float32(config.latents_std) + np.float32(config.latents_mean)
    return from_patches(decode_piece(parameters, config, moments, Past()), config.patch_size)


def test_encoding_in_pieces_of_any_length_equals_the_whole(wan):
    frames = jax.random.uniform(
        jax.random.key(0), (2, 13, 32, 32, 3), minval=-1
    )  # frame 0, a pair of latents, one more
    whole = run(whole_encoding, wan, frames)
    for chunk in (1, 2):
        assert apart(run(encode, wan, frames, chunk=chunk), whole) < AS_WHOLE


def test_decoding_in_pieces_of_any_length_equals_the_whole(wan):
    latents = jax.random.normal(jax.random.key(0), (2, 4, 2, 2, wan.config.z_dim))
    whole = run(whole_decoding, wan, latents)
    assert whole.shape[1] == 13
    for chunk in (1, 2):
        assert apart(run(decode, wan, latents, chunk=chunk), whole) < AS_WHOLE


def test_a_latent_depends_on_no_later_frame(wan):
    frames = np.asarray(to_unit(wan.frames))
    cut = run(encode, wan, np.concatenate([frames[:, :5], 0 * frames[:, 5:]], axis=1))
    np.testing.assert_array_equal(cut[:, :2], run(encode, wan, frames)[:, :2])
    assert apart(cut[:, 2], wan.latents[:, 2]) > 0.1


@pytest.fixture(params=[False, True], ids=["2.1", "2.2"])
def without_attention(request) -> SimpleNamespace:
    """A shallow network, whose reach fits a tile, of either generation; attention adds nothing."""
    config = WanVAEConfig(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=(2, 2),
        num_res_blocks=1,
        temperal_downsample=(True,),
        is_residual=request.param,
        patch_size=1 + request.param,
        latents_mean=(0.1, -0.2, 0.3, 0.0),
        latents_std=(1.0, 2.0, 0.5, 1.5),
    )
    shapes = {entry.theirs: entry.shape for entry in parameter_table(config).values()}
    parameters = from_diffusers(random_weights(shapes, seed=1), config)
    for side in ("encoder", "decoder"):
        out = parameters[side]["middle"]["attention"]["out"]
        out |= jax.tree.map(np.zeros_like, out)
    return SimpleNamespace(config=config, parameters=parameters)


TILES, REACH = Tiles(size=30, stride=24), 12
SIDES = 24, 40  # of a frame in latents: two tiles side by side, from 0 and from 24 on
OF_ONE_TILE = np.array([x <= 30 - REACH - 1 or x >= 24 + REACH for x in range(SIDES[1])])


def check_interior(tiled: np.ndarray, whole: np.ndarray, unit: int) -> None:
    interior = np.repeat(OF_ONE_TILE, unit)
    assert apart(tiled[:, :, :, interior], whole[:, :, :, interior]) < AS_WHOLE
    assert apart(tiled[:, :, :, ~interior], whole[:, :, :, ~interior]) > 10 * AS_WHOLE


def test_interior_of_tiles_equals_the_whole_encoding_without_attention(without_attention):
    sides = [without_attention.config.space_factor * side for side in SIDES]
    frames = jax.random.uniform(jax.random.key(0), (1, 3, *sides, 3), minval=-1)
    whole, tiled = (run(encode, without_attention, frames, tiles=tiles) for tiles in (None, TILES))
    check_interior(tiled, whole, 1)


def test_interior_of_tiles_equals_the_whole_decoding_without_attention(without_attention):
    latents = jax.random.normal(jax.random.key(0), (1, 2, *SIDES, 4))
    whole, tiled = (run(decode, without_attention, latents, tiles=tiles) for tiles in (None, TILES))
    check_interior(tiled, whole, without_attention.config.space_factor)


def test_frames_that_fit_one_tile_are_not_cut(without_attention):
    latents = jax.random.normal(jax.random.key(0), (1, 1, 6, 8, 4))
    whole, tiled = (run(decode, without_attention, latents, tiles=tiles) for tiles in (None, Tiles(8, 4)))
    np.testing.assert_array_equal(tiled, whole)


def test_tiles_that_leave_gaps_are_refused():
    with pytest.raises(UserError, match="expected a stride from 1 to the size"):
        Tiles(size=4, stride=5)
