"""Sampling on eight devices gives the grid of one device."""

import jax
import numpy as np
import pytest

from fourreal.checkpoints.specs import ModelSpec
from fourreal.diffusion.guidance import scale_branches
from fourreal.diffusion.samplers import Euler
from fourreal.models import GridDiTConfig
from fourreal.parallel.mesh import MeshConfig, fit_mesh, make_mesh
from fourreal.sampling.pipeline import GridPipeline


@pytest.mark.parametrize(("fusion", "guidance_scale"), [("soft", 2.0), ("fused", 1.0)])
def test_grid_sampled_on_eight_devices_is_that_of_one(tiny, fusion, guidance_scale):
    """Both branches of guidance over data, the grid over its axis, the parameters cut over both and fsdp."""
    spec = ModelSpec(tiny.config(hints=True), GridDiTConfig(fusion), views=4, times=2, size=(4, 6))
    params = tiny.params(spec.model, spec.grid)
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 6, 3), np.uint8)
    given = np.zeros((4, 2), bool)
    given[0] = True
    sampled = [
        GridPipeline(spec, params, mesh=make_mesh(mesh, jax.local_devices()[:devices]))(
            frames, given, steps=2, guidance_scale=guidance_scale
        )
        for mesh, devices in ((MeshConfig(), 1), (MeshConfig(data=2, fsdp=2, grid=2), 8))
    ]
    apart = np.abs(sampled[0].astype(int) - sampled[1])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01  # sums in another order, rounded to whole levels
    assert np.ptp(sampled[0][~given]) > 50


@pytest.mark.parametrize(
    ("devices", "views", "times", "width", "expected"),
    [
        (32, 8, 8, 1536, MeshConfig(data=2, fsdp=2, grid=8)),
        (8, 2, 2, 24, MeshConfig(data=2, fsdp=2, grid=2)),
        (8, 8, 4, 24, MeshConfig(data=2, fsdp=1, grid=4)),
        (4, 4, 4, 24, MeshConfig(grid=4)),
        (6, 4, 4, 24, MeshConfig(grid=2)),  # of three along data none takes a branch
        (64, 2, 2, 24, MeshConfig(grid=2)),  # as many cut no width of 24
        (16, 16, 16, 24, MeshConfig(data=2, fsdp=1, grid=8)),
        (1, 3, 5, 24, MeshConfig()),
    ],
)
def test_sampling_takes_devices_along_grid_then_two_for_guidance_then_cuts_parameters(
    devices, views, times, width, expected
):
    assert fit_mesh(devices, views, times, width) == expected


@pytest.mark.parametrize(
    ("devices", "slices", "expected"),
    [
        (8, 2, MeshConfig(data=2, fsdp=1, grid=4)),
        (12, 3, MeshConfig(data=3, fsdp=1, grid=4)),
        (24, 3, MeshConfig(data=3, fsdp=2, grid=4)),
        (12, 6, MeshConfig(data=6, fsdp=1, grid=2)),
    ],
)
def test_sampling_lays_slices_along_data(devices, slices, expected):
    mesh = fit_mesh(devices, 4, 4, 24, slices)
    assert mesh == expected and mesh.sizes(devices, slices)["data"] == expected.data


def test_a_device_computes_one_branch_of_guidance(tiny, monkeypatch):
    """By FLOPs of the compiled program: with guidance as many a device as without."""
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:8])
    spec = ModelSpec(tiny.config(), GridDiTConfig("soft"), views=2, times=2, size=(4, 4))
    pipe = GridPipeline(spec, tiny.params(spec.model, spec.grid))
    frames, given = np.zeros((1, 2, 2, 4, 4, 3), np.uint8), np.zeros((1, 2, 2), bool)
    noise = frames.astype(np.float32)

    def flops(scale: float) -> float:
        branches, weights = scale_branches(scale)
        lowered = pipe._sample.lower(
            pipe.params, {}, frames, given, noise, {}, weights, sampler=Euler(), steps=1, branches=branches, shift=1.0
        )
        return lowered.compile().cost_analysis()["flops"]

    with jax.set_mesh(pipe.mesh):
        plain, guided = flops(1.0), flops(2.0)
    assert plain <= guided < 1.2 * plain
