"""A codec's cells and views on eight devices: the numbers of one device, the memory of one cell, only pixels that travel."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.checkpoints.specs import ModelSpec
from fourreal.codecs import WanCodec
from fourreal.codecs.wan import WanVAEConfig
from fourreal.models import GridDiTConfig
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.sampling.pipeline import GridPipeline

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
CODECS = {mode: WanCodec("random", mode=mode, network=NETWORK) for mode in ("per_cell", "per_view")}
MESHES = {1: MeshConfig(), 8: MeshConfig(data=2, fsdp=2, grid=2)}
RNG = np.random.default_rng(0)
MODES = pytest.mark.parametrize("mode", CODECS)


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return make_mesh(MESHES[devices], jax.local_devices()[:devices])


@functools.cache
def compiled(mode: str, what: str, shape: tuple[int, ...], devices: int) -> jax.stages.Compiled:
    """The codec's `what` of a grid, with a result that every device has."""
    codec, dtype = CODECS[mode], np.uint8 if what == "encode" else np.float32
    with jax.set_mesh(mesh := mesh_of(devices)):
        jitted = jax.jit(getattr(codec, what), out_shardings=NamedSharding(mesh, P()))
        return jitted.lower(codec.parameters(), jax.ShapeDtypeStruct(shape, dtype)).compile()


@MODES
@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 4, 5)])
def test_eight_devices_encode_and_decode_what_one_does(mode, shape):
    """Also where there are fewer cells or views than devices, or they do not come out."""
    codec, frames = CODECS[mode], RNG.integers(0, 256, (*shape, 8, 12, 3), np.uint8)
    parameters = codec.parameters()
    one, eight = (np.asarray(compiled(mode, "encode", frames.shape, n)(parameters, frames)) for n in (1, 8))
    assert one.shape == (*shape[:2], *codec.shape(*frames.shape[2:5]))
    np.testing.assert_allclose(eight, one, atol=1e-5)
    pixels = [np.asarray(compiled(mode, "decode", one.shape, n)(parameters, one)).astype(int) for n in (1, 8)]
    assert pixels[0].shape == frames.shape and np.ptp(pixels[0]) > 50
    apart = np.abs(pixels[0] - pixels[1])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


@MODES
def test_only_pixels_leave_a_device_that_decodes_and_only_latents_one_that_encodes(mode):
    shape = (1, 8, 5, *CODECS[mode].shape(5, 16, 16)[1:])
    decoding = compiled(mode, "decode", (1, 8, len(CODECS[mode].groups(5)), *shape[3:]), 8).as_text()
    assert {kind for _, kind, _ in collectives(decoding)} == {"u8"}
    encoding = collectives(compiled(mode, "encode", (1, 8, 5, 16, 16, 3), 8).as_text())
    latents = np.prod((8, len(CODECS[mode].groups(5)), *shape[3:]))
    assert encoding and max(size for _, kind, size in encoding if kind != "u8") <= latents


def collectives(program: str) -> list[tuple[str, str, int]]:
    """(name, type, numbers in the result) of what devices send each other."""
    names = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    found = re.findall(rf"= \(?(\w+)\[([\d,]*)\][^=]*? ({names})(?:-start)?\(", program)
    return [(name, kind, int(np.prod([int(n) for n in sizes.split(",") if n]))) for kind, sizes, name in found]


def test_memory_of_coding_does_not_grow_with_the_cells_of_a_device():
    """But for the result itself, in bytes and, as XLA keeps it for its loop, once more."""
    few, many = (compiled("per_cell", "decode", (1, 2, t, 8, 8, 3), 1).memory_analysis() for t in (1, 16))
    grown = many.temp_size_in_bytes - few.temp_size_in_bytes
    assert grown <= many.output_size_in_bytes + 2**12
    assert many.temp_size_in_bytes > many.output_size_in_bytes / 32  # it is counted at all


@MODES
def test_a_grid_sampled_through_a_codec_on_eight_devices_is_that_of_one_and_says_how_far_it_is(tiny, mode, capsys):
    codec, views, times = CODECS[mode], 3, 5
    spec = ModelSpec(tiny.config(channels=3), GridDiTConfig("soft"), views, times, size=(16, 16), codec=codec)
    params = tiny.params(spec.model, spec.grid)
    frames = RNG.integers(0, 256, (views, times, 16, 16, 3), np.uint8)
    given = np.zeros((views, times), bool)
    given[0], given[:, 0] = True, True
    sampled, said = [], []
    for devices in (1, 8):
        sampled.append(GridPipeline(spec, params, mesh=mesh_of(devices))(frames, given, steps=2))
        said.append(capsys.readouterr().err)
    apart = np.abs(sampled[0].astype(int) - sampled[1])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01
    assert np.ptp(sampled[0][~given]) > 50
    np.testing.assert_array_equal(sampled[1][given], frames[given])
    coded = (7, 8) if mode == "per_cell" else (3, 2)  # pieces that hold a given latent, and one that is not given
    for what, count in zip(("encoding", "decoding"), coded, strict=True):
        assert re.search(rf"{what}: .*/{count} ", said[0])
    assert "encoding" not in said[1]  # one turn


def test_a_grid_of_which_all_or_nothing_is_given_goes_through_a_codec(tiny):
    spec = ModelSpec(tiny.config(channels=3), GridDiTConfig("soft"), 2, 1, size=(8, 8), codec=CODECS["per_cell"])
    pipe = GridPipeline(spec, tiny.params(spec.model, spec.grid), mesh=mesh_of(1))
    frames = RNG.integers(0, 256, (2, 1, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(pipe(frames, np.ones((2, 1), bool), steps=1), frames)
    assert np.ptp(pipe(frames, np.zeros((2, 1), bool), steps=1)) > 20
