"""The training step as the real compiler for TPUs builds it: what it moves between chips, and what it needs of one.

The model is small, but its tokens are more than any of a layer's parameters, so that sizes tell them apart.
"""

import collections
import dataclasses

import pytest

from fourreal.config import TrainConfig
from fourreal.data.pipeline import PipelineConfig
from fourreal.models import VideoDiTConfig
from fourreal.parallel import aot
from fourreal.parallel.mesh import MeshConfig

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not aot.libtpu_installed(), reason="libtpu is for Linux on x86")]

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
    4 // 4 * 4 // 2 * 4 * (16 * 32) * WIDTH * 4
)  # bytes of a stream on one of 8 devices: examples, views, times, cells
MIB = 2**20


def compiled(topology: str, slices: int = 1, **changes) -> dict:
    return aot.compile_elsewhere(aot.Question(dataclasses.replace(CONFIG, **changes), topology, slices, *CELL))


@pytest.mark.parametrize(
    ("topology", "slices", "ceiling"),
    [("v5e:2x4", 1, 32 * MIB), ("v6e:2x4", 1, 42 * MIB), ("v5p:2x2x2", 1, 96 * MIB), ("v5e:2x2", 2, 35 * MIB)],
)
def test_step_moves_tokens_by_six_all_to_alls_a_layer_and_by_nothing_else(topology, slices, ceiling):
    """And two more: the view stream's start, forward and backward; its readout moves patches, which are smaller."""
    answer = compiled(topology, slices)
    assert answer["kernel"] == "attention: splash"
    counts = collections.Counter()
    for each in answer["collectives"]:
        large = each["payload"] >= TOKENS
        counts[each["kind"], "tokens" if large else "others"] += each["count"]
        if each["between_slices"]:
            assert each["kind"] == "all-reduce", each  # of the gradients
    assert {kind for (kind, what), _ in counts.items() if what == "tokens"} == {"all-to-all"}
    assert counts["all-to-all", "tokens"] == 6 * DEPTH + 2
    assert answer["memory"]["total"] < ceiling  # a tenth above what it was
