"""The codecs `wan` and `wan2.2`: cells or views through the autoencoder, which latents are known, and how they are stored."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from wan_vae_weights import random_weights

from fourreal.checkpoints.specs import ModelSpec
from fourreal.codecs import Codec, Wan22Codec, WanCodec
from fourreal.codecs.wan import Tiles, WanVAEConfig
from fourreal.codecs.wan.network import decode, encode
from fourreal.codecs.wan.parameters import from_diffusers, parameter_table
from fourreal.errors import UserError
from fourreal.grid import to_uint8, to_unit
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params
from fourreal.sampling.pipeline import GridPipeline
from fourreal.serialize import from_json, to_json

NETWORK = WanVAEConfig(
    base_dim=4,
    decoder_base_dim=4,
    z_dim=3,
    dim_mult=(1, 1, 2),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    latents_mean=(0.1, -0.2, 0.3),
    latents_std=(1.0, 2.0, 0.5),
)
CELLS, VIEWS = (WanCodec("random", mode=mode, network=NETWORK) for mode in ("per_cell", "per_view"))
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 2, 5, 8, 12, 3), np.uint8)
ROUND_OFF = 1e-5
encode_clip = jax.jit(lambda parameters, frames: encode(parameters, NETWORK, frames))
decode_clip = jax.jit(lambda parameters, latents: decode(parameters, NETWORK, latents))


def diffusers_state() -> dict[str, np.ndarray]:
    return random_weights({entry.theirs: entry.shape for entry in parameter_table(NETWORK).values()}, seed=0)


@pytest.fixture(scope="module")
def parameters():
    return from_diffusers(diffusers_state(), NETWORK)


def encoded(codec: WanCodec, parameters, frames=FRAMES) -> np.ndarray:
    latents = np.asarray(jax.jit(codec.encode)(parameters, frames))
    assert latents.shape[2:] == codec.shape(*frames.shape[2:5])
    return latents


def test_per_view_encodes_and_decodes_each_view_as_a_video(parameters):
    latents = encoded(VIEWS, parameters)
    pixels = np.asarray(jax.jit(VIEWS.decode)(parameters, latents))
    assert pixels.dtype == np.uint8 and pixels.shape == FRAMES.shape
    for b, v in np.ndindex(2, 2):
        alone = encode_clip(parameters, to_unit(FRAMES[b, v][None]))
        np.testing.assert_allclose(latents[b, v], alone[0], atol=ROUND_OFF)
        wanted = to_uint8(decode_clip(parameters, alone))
        assert np.abs(pixels[b, v].astype(int) - np.asarray(wanted)[0]).max() <= 1


def test_per_cell_encodes_and_decodes_each_frame_as_an_image_for_any_number_of_times(parameters):
    frames = FRAMES[:, :, :3]
    latents = encoded(CELLS, parameters, frames)
    pixels = np.asarray(jax.jit(CELLS.decode)(parameters, latents))
    assert pixels.dtype == np.uint8 and pixels.shape == frames.shape
    for b, v, t in np.ndindex(2, 2, 3):
        alone = encode_clip(parameters, to_unit(frames[b, v, t][None, None]))
        np.testing.assert_allclose(latents[b, v, t], alone[0, 0], atol=ROUND_OFF)
        wanted = to_uint8(decode_clip(parameters, alone))
        assert np.abs(pixels[b, v, t].astype(int) - np.asarray(wanted)[0, 0]).max() <= 1


def test_an_image_has_the_latent_of_a_videos_first_frame(parameters):
    np.testing.assert_allclose(encoded(CELLS, parameters)[:, :, 0], encoded(VIEWS, parameters)[:, :, 0], atol=ROUND_OFF)


def test_tiles_of_a_codec_are_used(parameters):
    whole, tiled = (
        encoded(dataclasses.replace(CELLS, tiles=tiles), parameters, FRAMES[:1, :1, :1])
        for tiles in (None, Tiles(2, 1))
    )
    assert np.abs(tiled - whole).max() > 0.01


def test_factors_and_channels_are_those_of_the_mode_and_the_generation():
    assert [(codec.factors, codec.channels) for codec in (WanCodec(), WanCodec(mode="per_view"))] == [
        ((1, 8, 8), 16),
        ((4, 8, 8), 16),
    ]
    assert (Wan22Codec(mode="per_view").factors, Wan22Codec().channels) == ((4, 16, 16), 48)
    with pytest.raises(UserError, match="multiples of 8 and 8"):
        WanCodec().shape(1, 60, 64)


def test_groups_are_frame_0_and_then_four_at_a_time():
    assert VIEWS.groups(9) == [range(0, 1), range(1, 5), range(5, 9)]
    assert CELLS.groups(3) == [range(0, 1), range(1, 2), range(2, 3)]
    with pytest.raises(UserError, match=r"8 times: with mode=per_view .* \(5, say\).* mode=per_cell"):
        VIEWS.groups(8)


def test_known_latents_of_a_view_are_its_first_ones():
    given = np.zeros((2, 9), bool)
    given[:, 0] = given[0, :5] = True  # the freeze-time video at 0, and more of one view
    assert VIEWS.known(given).tolist() == [[True, True, False], [True, False, False]]
    later = np.zeros((2, 9), bool)
    later[0, 1:5] = True
    with pytest.raises(UserError, match="given frames are not its first ones"):
        VIEWS.known(later)
    np.testing.assert_array_equal(CELLS.known(later), later)
    with pytest.raises(UserError, match="one is given only in part"):
        VIEWS.known(np.arange(9) < 3)


def test_a_latent_is_valid_where_all_frames_that_it_depends_on_are():
    valid = np.ones((2, 9, 8, 8), bool)
    valid[0, 2, 3, 5] = False
    found = VIEWS.all_of(valid)
    wanted = np.ones((2, 3, 2, 2), bool)
    wanted[0, 1:, 0, 1] = False
    np.testing.assert_array_equal(found, wanted)
    assert CELLS.all_of(valid).sum() == 2 * 9 * 2 * 2 - 1
    np.testing.assert_array_equal(VIEWS.all_of(np.arange(9)[None] != 6), [[True, True, False]])


@pytest.mark.parametrize(
    "codec",
    [WanCodec(weights="some/folder"), VIEWS, Wan22Codec(mode="per_view", tiles=Tiles(16, 12)), Wan22Codec("x")],
)
def test_a_codec_is_stored_in_configs_and_named_on_command_lines(codec):
    assert from_json(Codec, json.loads(json.dumps(to_json(codec)))) == codec
    assert Codec.from_text(codec.to_text()) == codec


def test_weights_come_from_the_folder_that_the_codec_names(tmp_path, parameters):
    values = to_json(NETWORK)
    (tmp_path / "config.json").write_text(json.dumps({**values, "_class_name": "AutoencoderKLWan"}))
    save_file(diffusers_state(), tmp_path / "diffusion_pytorch_model.safetensors")
    found = dataclasses.replace(CELLS, weights=str(tmp_path)).parameters()
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, found, parameters)
    with pytest.raises(UserError, match="the codec's is 48"):
        Wan22Codec(
            weights=str(tmp_path), network=dataclasses.replace(NETWORK, base_dim=48, decoder_base_dim=48)
        ).parameters()


def test_random_parameters_are_the_same_each_time_and_can_be_asked_for_their_shapes_alone():
    first, second = CELLS.parameters(), CELLS.parameters()
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert jax.tree.map(lambda x: x.shape, jax.eval_shape(CELLS.parameters)) == jax.tree.map(np.shape, first)


def test_a_grid_is_sampled_in_latents_of_views_and_its_given_cells_come_back():
    sizes = {"width": 12, "depth": 1, "heads": 2, "mlp_width": 16, "patch": (1, 1, 1), "frequency_width": 8}
    model, grid = VideoDiTConfig(**sizes, channels=3), GridDiTConfig("soft")
    spec = ModelSpec(model, grid, views=2, times=5, size=(8, 12), codec=VIEWS)
    pipe = GridPipeline(spec, fresh_params(model, grid, 0))
    given = np.zeros((2, 5), bool)
    given[:, 0] = given[0] = True
    sampled = pipe(FRAMES[0], given, steps=2)
    np.testing.assert_array_equal(sampled[given], FRAMES[0][given])
    assert sampled[~given].std() > 0
    given[0, 0] = False
    with pytest.raises(UserError, match="given"):
        pipe(FRAMES[0], given, steps=2)
