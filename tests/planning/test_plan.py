"""The verb `plan` without a compiler: bad input, the batch, what it tries where a step does not fit, the table."""

import dataclasses

import jax
import numpy as np
import pytest

from fourreal import scene
from fourreal.cli import main
from fourreal.conditions import Cameras, Hints, Prompt, Text
from fourreal.data.batches import Batches
from fourreal.data.masks import CLIPS, CutMix
from fourreal.models import GridDiTConfig
from fourreal.models.build import split_model
from fourreal.parallel.chips import GIB, parse_topology
from fourreal.parallel.mesh import MeshConfig
from fourreal.planning import aot, plan
from fourreal.training.config import load_config
from fourreal.training.step import step_inputs

NANO = "configs/nano.py"
V5E = parse_topology("v5e:4x4")


@pytest.fixture(scope="module")
def config():
    return load_config(NANO)


@pytest.fixture
def answers(monkeypatch):
    """Lets a function of the question stand in for the compiler."""

    def put(function):
        monkeypatch.setattr(aot, "compile_elsewhere", function)

    return put


def an_answer(peak: float = 2 * GIB) -> dict:
    all_to_all = {"kind": "all-to-all", "groups": [[0, 1]], "between_slices": False}
    return {
        "tokens": 294_912,
        "trained": 2 * 10**6,
        "checkpoint": 3 * GIB,
        "frozen_bytes": GIB // 2,
        "frozen": 10**9,
        "flops": 16 * 197 * 10**12,
        "executed": 20 * 197 * 10**12,
        "seconds": 1.0,
        "kernel": "attention: splash",
        "mesh": {"data": 1, "fsdp": 8, "grid": 2, "tensor": 1},
        "memory": {"arguments": GIB, "temporaries": peak - GIB, "total": peak},
        "traffic": 819 * 10**9,
        "collectives": [
            all_to_all | {"payload": 2**20, "count": 1024, "overlaps": True},
            all_to_all | {"payload": 2**21, "count": 512, "overlaps": False},
        ],
        "coordinates": [[x, y, 0] for x in range(4) for y in range(4)],
    }


def refusal(argv: list[str], capsys) -> str:
    """The one line of a refused command."""
    with pytest.raises(SystemExit) as stop:
        main(["plan", *argv])
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stop.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the first argument is the config file"),
        ([NANO], "name the chips with --topology"),
        ([NANO, "--topology", "v5e:9"], "2 lengths, as v5e:2x4"),
        ([NANO, "--topology", "v5e:4x4", "--disk-gbps", "0"], "disk_gbps is 0.0: give a number above 0"),
        ([NANO, "--topology", "v5e:4x4", "--data.source", "nowhere"], "--size HEIGHT WIDTH"),
        ([NANO, "--topology", "v5e:4x4", "--size", "64", "63"], "multiples of the patch, 8"),
        ([NANO, "--topology", "v5e:4x4", "--size", "64", "64", "--mesh.fsdp", "3"], "16 devices"),
        ([NANO, "--topology", "v5e:4x4", "--slices", "3", "--size", "64", "64", "--mesh.data", "1"], "48"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_give(argv, said, capsys):
    assert said in refusal(argv, capsys)


def test_without_libtpu_the_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(aot, "find_libtpu", lambda: None)
    assert "pip install -e '.[tpu]'" in refusal([NANO, "--topology", "v5e:4x4", "--size", "64", "64"], capsys)


def test_step_that_does_not_fit_names_the_first_settings_that_do(config, answers, capsys):
    def compiler(question):
        if question.config.model.remat == "full" and question.config.mesh.fsdp == 16:
            return an_answer()
        raise aot.DoesNotFit("", 20 * GIB, 15.75 * GIB)

    answers(compiler)
    line = refusal([NANO, "--topology", "v5e:4x4", "--size", "64", "64"], capsys)
    assert "needs 20.00 GiB a device and v5e has 15.75" in line
    assert "--mesh.data 1 --mesh.fsdp 16 --model.remat full fits, with 2.00 GiB" in line


def test_program_that_compiles_but_exceeds_the_chip_does_not_fit(config, answers):
    answers(lambda question: an_answer(peak=16 * GIB))
    with pytest.raises(aot.DoesNotFit):
        plan.plan_step(config, V5E, (64, 64))


def test_where_nothing_fits_the_line_names_what_was_tried(config, answers):
    def compiler(question):
        raise aot.DoesNotFit("", None, None)

    answers(compiler)
    with pytest.raises(ValueError, match=r"--mesh.fsdp.*do not fit either.*--optim.microbatch 1.*--topology v5e:4x8"):
        plan.fitting_step(config, V5E, (64, 64), search=60)


@pytest.mark.parametrize(
    ("remat", "topology", "policies"),
    [
        ("matmuls", "v5e:4x4", ["full", "offload"]),
        ("full", "v5e:4x4", ["offload"]),
        ("offload", "v5e:4x4", []),
        ("matmuls", "h100:8", ["full"]),
    ],
)
def test_what_is_tried_next_keeps_less_of_a_layer_and_says_so_to_the_end(config, remat, topology, policies):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
    tried = [*plan.easier(config, parse_topology(topology))]
    own = [flags.split("--model.remat ")[1] for flags, *_ in tried if "--model.remat " in flags]
    assert [policy.split()[0] for policy in own[: len(policies)]] == policies
    for flags, lighter, _ in tried:
        assert (f"--model.remat {lighter.model.remat}" in flags) == (lighter.model.remat != remat)


def test_easier_settings_keep_data_across_slices_and_the_grid_axis(config):
    mesh = dataclasses.replace(config.mesh, grid=2)
    for _, lighter, topology in plan.easier(
        dataclasses.replace(config, mesh=mesh), parse_topology("v5e:4x4", slices=2)
    ):
        sizes = lighter.mesh.sizes(topology.devices, topology.slices)
        assert (sizes["data"], sizes["grid"]) == (2, 2)


def test_table_says_what_the_answer_says(config, answers):
    answers(lambda question: an_answer())
    table = plan.report(config, V5E, plan.plan_step(config, V5E, (64, 64)))
    for said in (
        "v5e:4x4, 16 chips; mesh fsdp 8, grid 2; attention: splash",
        "294,912 a step",
        "3.00 GiB, once 512.00 MiB of the frozen part; at 1 GB/s 3.22 s to write beside the steps, 3.76 s to resume",
        "2.0 M train, 1,000.0 M are frozen",
        "3.15 P a step of the model, 3.94 P with what is computed again",
        "peak 2.00 GiB of 15.75 GiB a device",
        "1,536 all-to-all: 2.00 GiB a device, 1.00 GiB sent, 512.00 MiB of it exposed",
        "compute 1.25 s, memory 1 s for 762.75 GiB, links 0.0239 s, 0.0119 s of it exposed",
        "MFU 79% to",
    ):
        assert said in table, table


def test_examples_that_several_devices_compute_are_mentioned(config, answers):
    answers(lambda question: an_answer())
    assert "8 devices compute the same examples" in plan.report(config, V5E, plan.plan_step(config, V5E, (64, 64)))
    eight = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    assert "the same examples" not in plan.report(eight, V5E, plan.plan_step(eight, V5E, (64, 64)))


def test_clips_that_do_not_exist_but_are_computed_are_mentioned(config, answers):
    answers(lambda question: an_answer())
    for views, times, said in ((4, 6, 0), (4, 21, 1), (3, 21, 2)):
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, views=views, times=times))
        table = plan.report(changed, V5E, plan.plan_step(changed, V5E, (64, 64)))
        assert table.count("mesh.grid 2 does not divide") == said
        assert ("does not divide 21 times: as many are computed as of 22" in table) == (times == 21)


def test_tokens_that_a_tensor_axis_does_not_divide_are_mentioned(config, answers):
    cells = config.data.batch_size * config.data.views * config.data.times
    for tensor, tokens, said in ((1, 15, False), (2, 15, True), (2, 16, False)):
        mesh = {"data": 1, "fsdp": 8 // tensor, "grid": 2, "tensor": tensor}
        answers(lambda question, mesh=mesh, tokens=tokens: an_answer() | {"mesh": mesh, "tokens": tokens * cells})
        table = plan.report(config, V5E, plan.plan_step(config, V5E, (64, 64)))
        assert ("mesh.tensor 2 does not divide the 15 tokens of a cell" in table) == said


def test_model_that_keeps_rounded_inputs_is_planned_and_compared_without_them():
    """Where nothing is kept twice, as to count FLOPs, or less than a layer's inputs, there is nothing to round."""
    config = load_config("configs/wan_1b_sync.py")
    model = dataclasses.replace(config.model, kept="bfloat16")
    assert model.with_remat("full") == model
    for policy in ("none", "matmuls", "offload"):
        assert model.with_remat(policy) == dataclasses.replace(config.model, remat=policy)
    config = dataclasses.replace(config, model=model)
    assert [lighter.model.kept for _, lighter, _ in plan.easier(config, V5E) if lighter.model.remat == "offload"]


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.12G) exceeds "
        "available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.12G of 15.75G "
        "hbm. Exceeded hbm capacity by 2.37G.",
    ],
)
def test_compilers_word_for_too_large_is_understood(said):
    answer = aot.too_large(said)
    assert (answer["needed"], answer["available"]) == (18.12 * GIB, 15.75 * GIB)


def test_other_refusals_of_the_compiler_are_not_taken_for_too_large():
    with pytest.raises(ValueError, match="INTERNAL"):
        aot.too_large("INTERNAL: Mosaic failed to compile")


def test_wan_configs_have_the_parameters_of_the_released_model_and_its_text():
    """Wan's own of 1.3 B, and ours: the `given` vector and three contexts of six vectors."""
    config = load_config("configs/wan_1b_sync.py")
    _, shapes = split_model(dataclasses.replace(config.model, lora_rank=0), GridDiTConfig("base"))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_418_996_800 + (1 + 3 * 6) * 1536
    batch = aot.batch_of(aot.Question(config, "v5e:4x4", 1, 36, 64))
    assert jax.tree.map(lambda x: x.shape, batch["conditions"]["text"]) == Prompt((8, 512, 4096), (8, 1, 4096))
    frames = batch["frames"]
    assert (frames.shape, frames.dtype) == ((8, 8, 8, 36, 64, 16), np.float32)


class Noise:
    """Scenes of noise with cameras and text, in memory."""

    fingerprint, partial = "noise", False

    def __len__(self):
        return 8

    def shape(self, i):
        return 5, 4, 8, 16

    def read(self, i, cut):
        rng, cells = np.random.default_rng(i), (len(cut.views), len(cut.times))
        cameras = scene.Cameras(np.tile(np.eye(3), (cells[0], 1, 1)), np.tile(np.eye(4), (cells[0], 1, 1)))
        text = np.zeros((512, 4), np.float32)
        return scene.Scene(rng.integers(0, 256, (*cells, 8, 16, 3), np.uint8), index=i, cameras=cameras, text=text)


@pytest.mark.parametrize(
    "cuts", [CutMix(), CLIPS, CutMix(0, fixed_view=1), CutMix(0, freeze_time=1), CutMix(0, image=1)], ids=str
)
def test_planned_batch_is_the_largest_that_training_draws(config, cuts):
    """The same arrays by the same names, in shape and type, also where frames are not square and conditions are dropped."""
    conditions = (Hints(), Cameras(drop=0.5), Text(width=4))
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, conditions=conditions),
        grid=GridDiTConfig("soft" if cuts.grid else "base"),
        data=dataclasses.replace(config.data, views=5, times=3, batch_size=4, cuts=cuts),
    )
    batches = Batches(config.data, conditions, config.codec, Noise()).train()
    drawn = [step_inputs(next(batches)) for _ in range(12)]
    batches.close()
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), batch) for batch in drawn]
    planned = jax.tree.map(lambda x: (x.shape, x.dtype), aot.batch_of(aot.Question(config, "v5e:4x4", 1, 8, 16)))
    assert planned in shapes
    assert planned["frames"] == max((batch["frames"] for batch in shapes), key=lambda frames: np.prod(frames[0]))


@pytest.mark.slow
def test_model_with_text_is_planned_on_gpus_with_its_state_and_batch_on_them_in_parts(config):
    conditions = (Hints(), Text(width=64))
    model = dataclasses.replace(
        config.model, width=32, heads=2, mlp_width=64, depth=1, conditions=conditions, dtype="bfloat16"
    )
    data = dataclasses.replace(config.data, batch_size=2)
    config = dataclasses.replace(config, model=model, data=data, mesh=MeshConfig(fsdp=2))
    step = plan.plan_step(config, parse_topology("h100:2"), (16, 16))
    assert step.kernel == "attention: cudnn"
    text, state = 512 * 64 * 4, 4 * step.trained * 4  # fp32: of one example; parameters, average and two moments
    assert text + state / 2 < step.arguments < text + 0.7 * state
    assert "as JAX takes by default" in plan.report(config, parse_topology("h100:2"), step)


@pytest.mark.slow
def test_microbatches_on_gpus_need_half_of_what_layers_keep_and_read_the_weights_twice(config):
    model = dataclasses.replace(config.model, width=32, heads=2, mlp_width=64, remat="matmuls")
    steps = []
    for most in (2, 1):  # of the two examples that each device has
        optim = dataclasses.replace(config.optim, microbatch=most)
        changed = dataclasses.replace(config, model=model, optim=optim, mesh=MeshConfig(fsdp=2))
        steps.append(plan.plan_step(changed, parse_topology("h100:2"), (64, 64)))
    whole, parts = steps
    gradients = parts.trained * 4 / 2  # once more for their sum, cut over two devices, but for small ones
    assert whole.temporaries / 2 < parts.temporaries < whole.temporaries / 2 + 2 * gradients
    assert parts.traffic > whole.traffic


@pytest.mark.skipif(aot.find_libtpu() is None, reason="needs libtpu")
def test_topology_that_libtpu_refuses_is_one_line(config):
    with pytest.raises(ValueError, match="libtpu knows no topology v5e:3x3"):
        aot.compile_elsewhere(aot.Question(config, "v5e:3x3", 1, 64, 64))
