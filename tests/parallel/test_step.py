"""A training step on eight devices equals the step on one: its loss and its gradients (AdamW's first moment holds them)."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fourreal.config import TrainConfig
from fourreal.models import GridDiTConfig
from fourreal.models.build import make_forward, split_model
from fourreal.parallel import layout
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.training.loop import CompiledSteps
from fourreal.training.optimizer import OptimConfig
from fourreal.training.state import fresh_state
from fourreal.training.step import make_train_step

VIEWS, TIMES, BATCH = 4, 2, 8  # a grid axis of 2 divides both
MIXED = ({"data": 2, "fsdp": 2, "grid": 2}, {"fsdp": 2, "grid": 2, "tensor": 2, "data": 1})
CASES = [
    *[("soft", {"data": -1} | {axis: size}) for axis, size in {"data": 8, "fsdp": 8, "grid": 2, "tensor": 2}.items()],
    *[("fused", {"data": -1} | {axis: size}) for axis, size in {"data": 8, "fsdp": 8, "grid": 2, "tensor": 2}.items()],
    *[("soft", mesh) for mesh in MIXED],
    *[(fusion, {"grid": 2}) for fusion in ("hard", "sequential", "none")],
]


@functools.cache
def batch() -> dict:
    rng = np.random.default_rng(0)
    given = rng.random((BATCH, VIEWS, TIMES)) < 0.4
    given[:, 0, 0], given[:, 1, 1] = True, False
    c2w = np.tile(np.eye(4, dtype=np.float32), (BATCH, VIEWS, 1, 1))
    c2w[..., :3, 3] = rng.normal(size=(BATCH, VIEWS, 3))
    return {
        "frames": rng.integers(0, 256, (BATCH, VIEWS, TIMES, 4, 4, 3), np.uint8),
        "given": given,
        "K": np.tile(np.array([[4, 0, 2], [0, 4, 2], [0, 0, 1]], np.float32), (BATCH, VIEWS, 1, 1)),
        "c2w": c2w,
        "cameras_known": rng.random(BATCH) < 0.7,
    }


def one_step(tiny: SimpleNamespace, fusion: str, mesh: MeshConfig, devices: int, microbatch: int | None = None):
    """(state, metrics) after a step from perturbed parameters."""
    base = tiny.config(hints=True, cameras=True)
    optim = OptimConfig(lr=0.01, warmup=0, ema=0.5, microbatch=microbatch)
    config = TrainConfig("x", base, GridDiTConfig(fusion), optim=optim, steps=10)
    with jax.set_mesh(make_mesh(mesh, jax.local_devices()[:devices])):
        params = tiny.params(config.model, config.grid)
        state = layout.jit_placed(lambda params: fresh_state(params, config), params)(params)
        forward = make_forward(split_model(config.model, config.grid)[0])
        return jax.device_get(CompiledSteps(make_train_step(forward, config), config)(state, batch()))


@pytest.fixture(scope="module")
def on_one_device(tiny):
    return functools.cache(lambda fusion: one_step(tiny, fusion, MeshConfig(), 1))


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "mesh"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_step_on_eight_devices_equals_the_step_on_one(tiny, on_one_device, fusion, mesh):
    same(one_step(tiny, fusion, MeshConfig(**mesh), 8), on_one_device(fusion))


@pytest.mark.slow
def test_step_in_microbatches_on_eight_devices_equals_the_step_on_one(tiny, on_one_device):
    same(one_step(tiny, "soft", MeshConfig(data=2, fsdp=2, grid=2), 8, microbatch=1), on_one_device("soft"))


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
