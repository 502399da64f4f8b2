"""How often tokens move between the devices of the grid axis: two all-to-alls a layer forward, four or six with backward."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, split_model
from fourreal.parallel import hlo, layout
from fourreal.parallel.mesh import MeshConfig, make_mesh

DEPTH, WIDTH, VIEWS, TIMES, SIDE = 3, 24, 4, 2, 16
TOKENS = VIEWS * TIMES // 2 * (SIDE // 2) ** 2 * WIDTH * 4  # bytes of a stream of one grid on one device


def moves(tiny, fusion: str, backward: bool) -> collections.Counter:
    """(kind, at least as large as the tokens) of the collectives of a pass on a grid axis of 2."""
    config = tiny.config(depth=DEPTH, remat="full")
    with jax.set_mesh(make_mesh(MeshConfig(grid=2), jax.local_devices()[:2])):
        graph, params = split_model(config, GridDiTConfig(fusion))
        forward, params = make_forward(graph), layout.placed_shapes(params)
        x = jax.ShapeDtypeStruct((1, VIEWS, TIMES, SIDE, SIDE, 3), np.float32)
        x = layout.batch_shapes({"x": x}, "grid", 1)["x"]

        def loss(params, x):
            return jnp.sum(forward(params, x, jnp.ones(1)) ** 2)

        compiled = jax.jit(jax.grad(loss) if backward else loss).lower(params, x).compile()
    counts = collections.Counter()
    for each in hlo.collectives(hlo.parse(compiled.as_text())):
        counts[each.kind, each.payload >= TOKENS] += each.count
    return counts


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
