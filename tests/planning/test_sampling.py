"""`plan --sample`: the table, what does not fit, and small models compiled for real."""

import dataclasses

import jax
import pytest

from fourreal.cli import main
from fourreal.codecs import Codec, WanCodec
from fourreal.codecs.wan import WanVAEConfig
from fourreal.conditions import Text
from fourreal.models import GridDiTConfig
from fourreal.parallel.chips import GIB, parse_topology
from fourreal.planning import aot, sampling
from fourreal.training.config import load_config

NETWORK = WanVAEConfig(8, 8, 4, (1, 1, 2), 1, (True, True), latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
SIZE = (32, 64)
V5E = parse_topology("v5e:1x1")


@pytest.fixture(scope="module")
def config():
    """A small grid model on latents of a small codec."""
    base = load_config("configs/nano.py")
    model = dataclasses.replace(
        base.model,
        width=128,
        depth=2,
        heads=2,
        mlp_width=256,
        patch=(1, 2, 2),
        channels=4,
        conditions=(Text(width=16),),
        prediction="u",
        dtype="bfloat16",
    )
    data = dataclasses.replace(base.data, views=4, times=5, batch_size=8)
    return dataclasses.replace(
        base, model=model, data=data, codec=WanCodec("random", network=NETWORK), sampling_steps=3
    )


def an_answer(name: str, beside: float = GIB, runs: int = 8) -> dict:
    parameters = 2 * GIB if name == "denoise" else GIB // 2
    memory = {"arguments": parameters, "temporaries": beside, "total": parameters + beside}
    return {
        "runs": 1 if name == "denoise" else runs,
        "parameters": parameters,
        "count": 10**9,
        "tokens": 36_864,
        "flops": 197 * 10**12 if name == "denoise" else 197 * 10**11,
        "executed": 197 * 10**12 if name == "denoise" else 197 * 10**11,
        "traffic": 819 * 10**8,
        "memory": memory,
        "collectives": [],
        "coordinates": [[0, 0, 0]],
        "mesh": {"data": 1, "fsdp": 1, "grid": 1, "tensor": 1},
        "kernel": "attention: splash",
    }


@pytest.fixture
def answers(monkeypatch):
    """Lets a function of the question stand in for the compiler; returns the questions."""

    def put(function):
        asked = []
        monkeypatch.setattr(aot, "compile_elsewhere", lambda question: asked.append(question) or function(question))
        return asked

    return put


def test_table_has_the_seconds_of_all_runs_and_the_peak_with_the_others_parameters(config, answers):
    asked = answers(lambda question: an_answer(question.program))
    table = sampling.plan(config, V5E, SIZE, guidance=True)
    assert [(each.program, each.guidance, each.config.data.batch_size) for each in asked] == [
        (name, True, 1) for name in ("denoise", "encode", "decode")
    ]
    for said in (
        "v5e:1x1, 1 chip; mesh of one device; attention: splash",
        "4 views x 5 times of 32 x 64, 36,864 tokens; 3 steps with guidance, two evaluations a step",
        "1,000.0 M of the model; a device holds 2.00 GiB of the model, 512.00 MiB of the codec",
        "denoise     197 T FLOPs; 1.00 GiB beside the parameters, peak 3.50 GiB of 15.75 GiB a device",
        "decode      158 T FLOPs in 8 runs",
        "0.8 to 1.6 s: compute 0.8 s, memory 0.8 s, links 0 s",
        "a grid      2.6 to 4.3 s by these",
    ):
        assert said in table, table


def test_a_codec_of_pixels_has_no_programs_of_its_own(config, answers):
    asked = answers(lambda question: an_answer(question.program))
    pixels = dataclasses.replace(load_config("configs/nano.py"), sampling_steps=3)
    assert "codec" not in sampling.plan(pixels, V5E, (64, 64), guidance=False)
    assert [each.program for each in asked] == ["denoise"]


@pytest.mark.parametrize(
    ("codec", "large", "said"),
    [
        ("wan", "denoise", ["to denoise needs 22.50 GiB", "v5e has 15.75", "mode=per_view", "no --guidance"]),
        ("wan:mode=per_view", "denoise", ["larger --topology", "fewer --data.views"]),
        ("wan", "decode", ["to decode needs 22.50", '--codec \'wan:tiles={"size": 32, "stride": 24}\'']),
        ('wan:tiles={"size":32,"stride":24}', "encode", ["to encode needs", '{"size": 16, "stride": 12}']),
    ],
)
def test_what_does_not_fit_beside_the_others_parameters_is_one_line_with_what_to_do(
    config, answers, codec, large, said
):
    """Each program by itself would fit."""
    codec, model = Codec.from_text(codec), dataclasses.replace(config.model, channels=16)
    answers(lambda question: an_answer(question.program, (20 if question.program == large else 1) * GIB))
    with pytest.raises(ValueError) as refused:
        sampling.plan(dataclasses.replace(config, codec=codec, model=model), V5E, SIZE, guidance=True)
    for words in said:
        assert words in str(refused.value), refused.value
    assert ("mode=per_view" in str(refused.value)) == ("mode=per_view" in " ".join(said))


def test_what_the_compiler_refuses_says_the_same(config, answers):
    def refuse(question):
        raise aot.DoesNotFit("", None, None)

    answers(refuse)
    with pytest.raises(ValueError, match=r"to denoise needs more memory and v5e has 15\.75: give a larger --topology"):
        sampling.plan(config, V5E, SIZE, guidance=False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--guidance"], "guidance is of sampling: add --sample"),
        (["--sample", "--codec", "wan"], "the codec 'wan' has 16"),
        (["--sample", "--grid.fusion", "base", "--data.cuts.grid", "0", "--data.cuts.image", "1"], "base on clips"),
    ],
)
def test_bad_input_is_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/nano.py", "--topology", "v5e:1x1", "--size", "64", "64", *argv])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_sides_that_codec_or_patch_do_not_divide_are_refused(config):
    with pytest.raises(ValueError, match="multiples of 4 and 4"):
        sampling.latent_size(config, (30, 64))
    with pytest.raises(ValueError, match=r"9 x 16 .* multiples of its patch, 2"):
        sampling.latent_size(config, (36, 64))
    assert sampling.latent_size(config, SIZE) == (8, 16)


def test_devices_are_laid_as_sampling_lays_them(config):
    mesh = sampling.sampling_mesh(config, parse_topology("v6e:2x4"))
    assert mesh.sizes(8) == {"data": 2, "fsdp": 4, "grid": 1, "tensor": 1}
    even = dataclasses.replace(config, data=dataclasses.replace(config.data, times=4))
    assert sampling.sampling_mesh(even, parse_topology("v6e:2x4")).sizes(8)["grid"] == 4


def programs_of(
    config, topology: str, guidance: bool = False, names: tuple[str, ...] = ("denoise", "encode", "decode")
) -> dict[str, sampling.Program]:
    one = sampling.of_one_grid(config)
    return {name: sampling.plan_program(one, parse_topology(topology), SIZE, guidance, name) for name in names}


def check(config, programs: dict[str, sampling.Program], devices: int) -> None:
    """What programs of the small model say against counts by hand."""
    denoise, model = programs["denoise"], config.model
    tokens = 4 * 5 * (8 * 16) // 4
    assert denoise.answer["tokens"] == tokens and denoise.runs == 1
    matmuls = (
        2 * tokens * 2 * model.depth * (4 * model.width**2 + 2 * model.width * model.mlp_width) * 3
    )  # streams, steps
    assert matmuls < denoise.answer["flops"] < 4 * matmuls  # with the attention and the sync
    assert all(each.answer["executed"] == each.answer["flops"] for each in programs.values())
    assert denoise.beside > tokens // devices * model.width * 4
    shapes = jax.eval_shape(config.codec.parameters)
    for name in ("encode", "decode"):
        program = programs[name]
        assert program.runs == -(-20 // devices)
        assert program.parameters == sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
        assert program.beside > 32 * 64 * 8 * 4  # one array of full resolution
    assert all(each.seconds.best > 0 for each in programs.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100:1", "rtx4090:1"])
def test_small_model_is_planned_on_a_gpu(config, name):
    programs = programs_of(config, name)
    check(config, programs, 1)
    assert programs["denoise"].answer["kernel"] == "attention: cudnn"
    table = sampling.report(sampling.of_one_grid(config), parse_topology(name), SIZE, False, [*programs.values()])
    assert "cuDNN's workspace comes on top" in table


@pytest.mark.slow
@pytest.mark.skipif(not aot.find_libtpu(), reason="libtpu is for Linux on x86")
def test_small_model_is_planned_on_tpus_and_guidance_costs_twice(config):
    config = dataclasses.replace(config, grid=GridDiTConfig("soft"))
    one, guided = programs_of(config, "v5e:1x1"), programs_of(config, "v5e:1x1", True, ("denoise",))
    check(config, one, 1)
    assert one["denoise"].answer["kernel"] == "attention: splash"
    ratio = guided["denoise"].answer["flops"] / one["denoise"].answer["flops"]
    assert 1.9 < ratio <= 2.0
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, times=4))
    eight = programs_of(config, "v6e:2x4", names=("denoise", "decode"))
    assert eight["denoise"].answer["executed"] == 2 * eight["denoise"].answer["flops"]  # along data
    assert eight["denoise"].answer["flops"] < one["denoise"].answer["flops"]  # of 4 times instead of 5
    assert eight["decode"].runs == 2
    assert eight["denoise"].answer["mesh"] == {"data": 2, "fsdp": 1, "grid": 4, "tensor": 1}
    assert {each["kind"] for each in eight["decode"].answer["collectives"]} == {"all-gather"}
    assert eight["denoise"].parameters < one["denoise"].parameters / 3
