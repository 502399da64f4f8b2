"""How often tokens move between the devices of the grid axis: two all-to-alls a layer forward, four or six with backward."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, model_table, split_model
from fourreal.parallel import layout
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.planning.collectives import collectives
from fourreal.planning.hlo import parse

DEPTH, WIDTH, VIEWS, TIMES, SIDE = 3, 24, 4, 2, 16
TOKENS = VIEWS * TIMES // 2 * (SIDE // 2) ** 2 * WIDTH * 4  # bytes of a stream of one grid on one device


def moves(tiny, fusion: str, backward: bool, shape: tuple[int, int, int] = (1, VIEWS, TIMES)) -> collections.Counter:
    """(kind, at least as large as the tokens) of the collectives of a pass on a grid axis of 2."""
    config, grid = tiny.config(depth=DEPTH, remat="full", hints=fusion == "base"), GridDiTConfig(fusion)
    with jax.set_mesh(make_mesh(MeshConfig(grid=2), jax.local_devices()[:2])):
        graph, params = split_model(config, grid)
        forward, params = make_forward(graph), layout.placed_shapes(params, model_table(config, grid))
        x = jax.ShapeDtypeStruct((*shape, SIDE, SIDE, 3), np.float32)
        x = layout.batch_shapes(x, 3, 1, grid.make_fusion().lead)

        def loss(params, x):
            return jnp.sum(forward(params, x, jnp.ones(len(x))) ** 2)

        compiled = jax.jit(jax.grad(loss) if backward else loss).lower(params, x).compile()
    counts = collections.Counter()
    for each in collectives(parse(compiled.as_text())):
        counts[each.kind, each.payload >= TOKENS] += each.count
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fusion", "forward", "both", "around"),
    # what soft and hard exchange are products, which their backward does not need again
    [("soft", 2, 4, 1), ("hard", 2, 4, 1), ("sequential", 2, 6, 0), ("fused", 2, 6, 0), ("none", 0, 0, 1)],
)
def test_tokens_move_by_two_all_to_alls_a_layer_and_four_or_six_with_backward(tiny, fusion, forward, both, around):
    """`around`: the view stream's start; its readout moves patches, which are smaller."""
    assert moves(tiny, fusion, backward=False)["all-to-all", True] == forward * DEPTH + around
    found = moves(tiny, fusion, backward=True)
    assert found["all-to-all", True] == both * DEPTH + 2 * around
    large = {kind for kind, of_tokens in found if of_tokens}
    assert large <= {"all-to-all", "all-reduce"}  # the latter sums gradients of parameters, several at once


@pytest.mark.slow
@pytest.mark.parametrize("cells", [(1, 2 * TIMES), (2 * VIEWS, 1)])
def test_base_has_whole_clips_on_a_device_and_moves_no_token(tiny, cells):
    """Nor a frame for the hints. Each of two devices has one of two clips."""
    for backward in (False, True):
        found = moves(tiny, "base", backward, (2, *cells))
        assert not any(kind in ("all-to-all", "collective-permute") for kind, _ in found)
        assert {kind for kind, of_tokens in found if of_tokens} <= {"all-reduce"}
