"""The training step as the real compiler for TPUs builds it: what it moves between chips, and what it needs of one.

The model is small, but its tokens are more than any of a layer's parameters, so that sizes tell them apart.
"""

import collections
import dataclasses
import math

import pytest
from flax import traverse_util

from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CLIPS
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import model_table, split_model
from fourreal.parallel.chips import parse_topology
from fourreal.parallel.layout import FSDP
from fourreal.parallel.mesh import MeshConfig
from fourreal.planning import aot, plan, roofline
from fourreal.training.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not aot.find_libtpu(), reason="libtpu is for Linux on x86")]

DEPTH, WIDTH, CELL = 3, 128, (32, 64)  # 16 x 32 tokens a cell
CONFIG = TrainConfig(
    "tpu",
    VideoDiTConfig(
        width=WIDTH,
        depth=DEPTH,
        heads=2,
        mlp_width=256,
        patch=(1, 2, 2),
        channels=16,
        prediction="u",
        dtype="bfloat16",
        remat="full",
    ),
    data=PipelineConfig(views=4, times=4, batch_size=4),
    mesh=MeshConfig(fsdp=2, grid=2),
)
TOKENS = (
    4 // 4 * 4 // 2 * 4 * (16 * 32) * WIDTH * 2
)  # bytes in bf16 of a stream on one of 8 devices: examples, views, times, cells
MIB = 2**20


KERNELS = 7  # of a layer: query, key, value, out, two of the MLP, the sync's
MOVES = {
    # four a layer, see test_collectives.py; patches of the view stream's readout are as large here, forward and backward
    "tokens": 4 * DEPTH + 2,
    # the view stream's start, in fp32, forward and backward
    "larger": 2,
    # its vectors of the noise level: of blocks, sync and head; each forward and backward
    "others": 2 * 3,
}
# Of weights and gradients. How XLA joins them is its choice.
WEIGHTS = {("all-gather", "others"), ("reduce-scatter", "others"), ("all-reduce", "others")}


def compiled(topology: str, slices: int = 1, **changes) -> dict:
    return aot.compile_elsewhere(aot.Question(dataclasses.replace(CONFIG, **changes), topology, slices, *CELL))


@pytest.mark.parametrize(
    ("topology", "slices", "mesh", "ceiling", "exposed"),
    [
        ("v5e:4x4", 1, CONFIG.mesh, 33 * MIB, 0.6),
        ("v6e:8x8", 1, CONFIG.mesh, 59 * MIB, 0.01),  # its sparse cores gather
        ("v5p:4x4x4", 1, MeshConfig(data=2, fsdp=16, grid=2), 107 * MIB, 0.4),
        ("v5e:2x2", 2, CONFIG.mesh, 57 * MIB, 1.0),
    ],
    ids=str,
)
def test_step_moves_tokens_by_four_all_to_alls_a_layer_and_weights_and_gradients_as_often_as_they_need(
    topology, slices, mesh, ceiling, exposed
):
    """No all-to-all is waited for, and of the gathered bytes no more than the share `exposed`."""
    devices = parse_topology(topology, slices).devices  # of which each has one example of a quarter of the cells
    answer = compiled(topology, slices, mesh=mesh, data=dataclasses.replace(CONFIG.data, batch_size=devices // 2))
    assert answer["kernel"] == "attention: splash"
    counts, moved, waited = collections.Counter(), collections.Counter(), collections.Counter()
    for each in roofline.from_answer(answer["collectives"]):
        size = ("others", "tokens", "larger")[(each.payload >= TOKENS) + (each.payload > TOKENS)]
        counts[each.kind, "between slices" if each.between_slices else size] += each.count
        moved[each.kind, each.between_slices] += each.count * each.payload
        waited[each.kind] += each.count * each.payload * (not each.overlaps)
    assert {size: counts.pop(("all-to-all", size)) for size in MOVES} == MOVES
    assert counts.keys() == WEIGHTS | ({("all-reduce", "between slices")} if slices > 1 else set())
    # over grid, then over fsdp: every kernel of a layer forward and, since none is kept, backward; six outside layers forward
    times, kernels = 2 * 2 * KERNELS * DEPTH + 2 * 6, gathered_bytes() * (1 + 1 / mesh.fsdp)
    gathers, gathered = counts["all-gather", "others"], moved["all-gather", False]
    gradients = 2 * answer["trained"]  # bytes in bf16
    if slices == 1:
        assert (gathers, gathered) == (times, kernels)
        assert (
            moved["reduce-scatter", False] + moved["all-reduce", False] < 2 * gradients
        )  # over one axis, then the next
    else:  # XLA gathers some of them once more
        assert times <= gathers < 2 * times and kernels <= gathered < 1.3 * kernels
        assert moved["all-reduce", True] < 1.2 * 2 * gradients / 4  # each device its part, some of it in fp32
    assert answer["memory"]["total"] < ceiling  # a tenth above what it was
    assert not waited["all-to-all"] and waited["all-gather"] <= exposed * gathered


def gathered_bytes() -> int:
    """Of the kernels that fsdp and grid cut, in bf16: those of layers twice."""
    table, (_, shapes) = model_table(CONFIG.model, CONFIG.grid), split_model(CONFIG.model, CONFIG.grid)
    flat = traverse_util.flatten_dict(shapes, sep=".")
    return sum(
        2 * x.size * (2 if name.startswith(("base.blocks.", "sync.")) else 1)
        for name, x in flat.items()
        if FSDP in table[name].spec
    )


def test_collectives_that_a_chip_would_wait_for_run_beside_its_work_unless_that_is_turned_off():
    data, mesh = dataclasses.replace(CONFIG.data, batch_size=4), MeshConfig(fsdp=4, grid=2)
    config = dict(mesh=mesh, data=data, model=dataclasses.replace(CONFIG.model, depth=1))
    waited = {
        overlap: sum(
            each.count * each.sent
            for each in roofline.from_answer(compiled("v6e:2x4", overlap=overlap, **config)["collectives"])
            if not each.overlaps
        )
        for overlap in ("none", "chip")
    }
    assert waited["chip"] < 0.2 * waited["none"], waited


def test_no_all_reduce_of_a_layers_size_remains_where_all_chips_of_a_three_dimensional_torus_cut_the_weights():
    """Over all 64 at once, XLA would make all-reduces of the gathers and of the scattered sums. It does of sums of a few rows,
    so this model is wider."""
    depth, width, fsdp = 2, 1024, 16
    model = dataclasses.replace(CONFIG.model, depth=depth, width=width, heads=8, mlp_width=2 * width)
    data, mesh = dataclasses.replace(CONFIG.data, batch_size=fsdp), MeshConfig(data=1, fsdp=fsdp, grid=4)
    question = aot.Question(dataclasses.replace(CONFIG, model=model, data=data, mesh=mesh), "v5p:4x4x4", 1, 8, 16)
    answer = aot.compile_elsewhere(question)
    layer = 2 * 12 * width**2  # bytes of its kernels in bf16: four of attention, two of the MLP, the sync's four parts
    found = roofline.from_answer(answer["collectives"])
    assert max(each.payload for each in found if each.kind == "all-reduce") < layer / 10
    moved = {
        kind: sum(each.payload * each.count for each in found if (each.kind, each.size) == (kind, fsdp))
        for kind in ("all-gather", "reduce-scatter")
    }
    assert moved["all-gather"] >= 2 * depth * layer  # forward and backward
    assert moved["reduce-scatter"] >= depth * layer


def test_tensor_gathers_tokens_and_scatters_their_sums_and_reduces_none():
    """Else each of its devices would keep all tokens between the blocks."""
    mesh = MeshConfig(data=1, fsdp=2, grid=2, tensor=2)
    answer = compiled("v5p:2x2x2", mesh=mesh, model=dataclasses.replace(CONFIG.model, depth=1))
    tokens = TOKENS * 2  # half as many devices cut examples, views and times
    scattered, reduced = (
        [each["payload"] for each in answer["collectives"] if each["kind"] == kind and each["payload"] >= tokens / 2]
        for kind in ("reduce-scatter", "all-reduce")
    )
    assert scattered and not reduced


@pytest.mark.parametrize(
    ("name", "devices", "memory"), [("v4:2x2x1", 4, "31.75 GiB a device"), ("tpu7x:2x2x1", 8, "94.75 GiB a device")]
)
def test_base_alone_is_planned_for_chips_of_two_cores(name, devices, memory):
    """Which are one device of a v4 and two of a tpu7x; there, its sparse cores run the all-gathers."""
    data = dataclasses.replace(CONFIG.data, cuts=CLIPS, batch_size=8)
    model = dataclasses.replace(CONFIG.model, depth=1)
    config = dataclasses.replace(CONFIG, model=model, grid=GridDiTConfig("base"), data=data)
    topology = parse_topology(name)
    step = plan.plan_step(config, topology, (8, 16))
    assert math.prod(step.mesh.values()) == topology.devices == devices
    assert step.kernel == "attention: splash"
    assert sum(each.count for each in step.collectives if each.kind == "all-gather") >= 2 * (KERNELS - 1)
    state = 4 * step.trained * 4 / 4  # parameters, average and two moments in fp32, over fsdp and grid
    assert state < step.arguments < 2 * state
    assert memory in plan.report(config, topology, step)
