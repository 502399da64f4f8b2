"""A training step on eight devices equals the step on one: its loss and its gradients (AdamW's first moment holds them)."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fourreal.conditions import Prompt, Prope
from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CLIPS, CutMix
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.models import GridDiTConfig
from fourreal.models.build import model_table
from fourreal.parallel import layout
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.scene import Cameras
from fourreal.training.compiled import CompiledSteps
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import OptimConfig
from fourreal.training.state import fresh_state
from fourreal.training.step import make_train_step

VIEWS, TIMES, BATCH = 4, 2, 8  # a grid axis of 2 divides both
MIXED = ({"data": 2, "fsdp": 2, "grid": 2}, {"fsdp": 2, "grid": 2, "tensor": 2, "data": 1})
CASES = [
    *[("soft", {"data": -1} | {axis: size}) for axis, size in {"data": 8, "fsdp": 8, "grid": 2, "tensor": 2}.items()],
    *[("fused", {"data": -1} | {axis: size}) for axis, size in {"data": 8, "fsdp": 8, "grid": 2, "tensor": 2}.items()],
    *[("soft", mesh) for mesh in MIXED],
    *[(fusion, {"grid": 2}) for fusion in ("hard", "sequential", "none", "soft:every=2")],
    *[("base", mesh) for mesh in ({"grid": 8}, *MIXED)],
]
# Grids of which grid divides neither side, the times alone, or the views alone, by so much that a device has no time.
FILLED_UP = [
    *[(fusion, MIXED[0], (3, 5)) for fusion in ("soft", "sequential", "fused")],
    ("fused", MIXED[1], (3, 2)),
    ("soft", {"grid": 4}, (4, 5)),
]

# Cameras as relative positions, with heads of 8 numbers: the branch's heads are cut with the others, its poses with the cells;
# and low-rank additions to every map.
PROPE = [
    *[("soft", mesh, (VIEWS, TIMES)) for mesh in MIXED],
    ("fused", MIXED[1], (VIEWS, TIMES)),
    ("fused", MIXED[0], (3, 5)),
    ("sequential", MIXED[0], (3, 5)),
]


@functools.cache
def batch(views: int, times: int) -> dict:
    """Everything that a batch may hold: cameras, text, cells that are missing and pixels that are invalid, drops."""
    rng, cells = np.random.default_rng(0), (BATCH, views, times)
    given = rng.random(cells) < 0.4
    given[:, 0, 0], given[:, -1, -1] = True, False
    exists = given | (rng.random(cells) < 0.8)
    exists[:, -1, -1] = True
    K = np.tile(np.array([[4, 0, 2], [0, 4, 2], [0, 0, 1]], np.float32), (BATCH, views, 1, 1))
    c2w = np.tile(np.eye(4, dtype=np.float32), (BATCH, views, 1, 1))
    c2w[..., :3, 3] = rng.normal(size=(BATCH, views, 3))
    reference = rng.integers(views, size=BATCH).astype(np.int32)
    return {
        "frames": rng.integers(0, 256, (*cells, 4, 4, 3), np.uint8),
        "given": given,
        "exists": exists,
        "valid": rng.random((*cells, 4, 4)) < 0.9,
        "conditions": {
            "cameras": Cameras(K, c2w, known=rng.random(BATCH) < 0.7, reference=reference),
            "text": Prompt(*(rng.normal(size=(BATCH, tokens, 6)).astype(np.float32) for tokens in (3, 1))),
        },
        "dropped": {"text": rng.random(BATCH) < 0.3},
    }


def one_step(
    tiny: SimpleNamespace,
    fusion: str,
    mesh: MeshConfig,
    devices: int,
    microbatch: int | None = None,
    cells: tuple[int, int] = (VIEWS, TIMES),
    prope: bool = False,
):
    """(state, metrics) after a step from perturbed parameters."""
    changes = {"width": 32, "heads": 4, "conditions": (Prope(),), "lora_rank": 2, "lora_maps": ("*",)} if prope else {}
    base = tiny.config(hints=True, cameras=True, text_width=6, **changes)
    optim = OptimConfig(lr=0.01, warmup=0, ema=0.5, microbatch=microbatch)
    data = PipelineConfig(cuts=CLIPS if fusion == "base" else CutMix())
    config = TrainConfig("x", base, GridDiTConfig(fusion), data, optim=optim, steps=10)
    inputs = batch(VIEWS, 1) if fusion == "base" else batch(*cells)
    if prope:
        told = inputs["conditions"]
        inputs = inputs | {"conditions": told | {"prope": told["cameras"]}}
    with jax.set_mesh(make_mesh(mesh, jax.local_devices()[:devices])):
        params = tiny.params(config.model, config.grid)
        table = model_table(config.model, config.grid)
        state = layout.jit_placed(lambda params: fresh_state(params, config), table, params)(params)
        steps = CompiledSteps(make_train_step(make_denoiser(config.model, config.grid), config), config)
        return jax.device_get(steps(state, inputs))


@pytest.fixture(scope="module")
def on_one_device(tiny):
    return functools.cache(lambda fusion: one_step(tiny, fusion, MeshConfig(), 1))


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "mesh"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_step_on_eight_devices_equals_the_step_on_one(tiny, on_one_device, fusion, mesh):
    same(one_step(tiny, fusion, MeshConfig(**mesh), 8), on_one_device(fusion))


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "mesh", "cells"), FILLED_UP, ids=lambda value: str(value).replace(" ", ""))
def test_step_equals_that_of_one_device_where_grid_does_not_divide_views_or_times(tiny, fusion, mesh, cells):
    same(
        one_step(tiny, fusion, MeshConfig(**mesh), 8, cells=cells), one_step(tiny, fusion, MeshConfig(), 1, cells=cells)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "mesh", "cells"), PROPE, ids=lambda value: str(value).replace(" ", ""))
def test_step_with_cameras_as_relative_positions_and_low_rank_additions_equals_that_of_one_device(
    tiny, fusion, mesh, cells
):
    found = one_step(tiny, fusion, MeshConfig(**mesh), 8, cells=cells, prope=True)
    same(found, one_step(tiny, fusion, MeshConfig(), 1, cells=cells, prope=True))


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["soft", "base"])
def test_step_in_microbatches_on_eight_devices_equals_the_step_on_one(tiny, on_one_device, fusion):
    mesh = MeshConfig(data=1, fsdp=2, grid=2, tensor=2)
    same(one_step(tiny, fusion, mesh, 8, microbatch=1), on_one_device(fusion))


def same(found: tuple, expected: tuple) -> None:
    (state, metrics), (wanted, wanted_metrics) = found, expected
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5)
    moments, wanted_moments = (jax.tree_util.tree_leaves_with_path(s["opt"]) for s in (state, wanted))
    for (path, leaf), (_, other) in zip(moments, wanted_moments, strict=True):
        # sums in another order: 1e-5 of a tensor's largest value
        np.testing.assert_allclose(
            leaf, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=jax.tree_util.keystr(path)
        )
