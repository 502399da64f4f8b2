"""Sampling on eight devices gives the grid of one device."""

import jax
import numpy as np
import pytest

from fourreal.models import GridDiTConfig
from fourreal.models.checkpoints import ModelSpec
from fourreal.parallel.mesh import MeshConfig, fit_mesh, make_mesh
from fourreal.sampling.pipeline import GridPipeline


@pytest.mark.parametrize(("fusion", "guidance_scale"), [("soft", 2.0), ("fused", 1.0)])
def test_grid_sampled_on_eight_devices_is_that_of_one(tiny, fusion, guidance_scale):
    """Both branches of guidance over data, the grid over its axis, the parameters cut over both and fsdp."""
    spec = ModelSpec(tiny.config(hints=True), GridDiTConfig(fusion), views=4, times=2, size=4)
    params = tiny.params(spec.model, spec.grid)
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 4, 4, 3), np.uint8)
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
    ("devices", "views", "times", "grid"), [(8, 8, 4, 4), (4, 4, 4, 4), (6, 4, 4, 2), (1, 3, 5, 1)]
)
def test_sampling_takes_as_many_devices_along_grid_as_divide_it(devices, views, times, grid):
    assert fit_mesh(devices, views, times) == MeshConfig(grid=grid)
