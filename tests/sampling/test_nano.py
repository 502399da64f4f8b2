"""The bundled `nano` on a bundled grid of a unit that it never saw: what anybody's first sample must not be."""

import numpy as np
import pytest

import fourreal
from fourreal.metrics.baselines import BASELINES
from fourreal.metrics.lpips import make_lpips
from fourreal.metrics.moved_baselines import moved_baselines
from fourreal.metrics.pixels import gradient_energy_by_motion, psnr_by_motion
from fourreal.sampling.inputs import GRIDS, read_grid
from fourreal.scene import Cameras

BLOCK = 8  # pixels


@pytest.fixture(scope="module")
def guard():
    """The grid, and what is sampled of it by default."""
    grid, pipe = read_grid("guard", (8, 8, 128, 128)), fourreal.load_pipeline("nano")
    return grid, pipe(grid.frames, grid.given, cameras=Cameras(grid.K, grid.c2w))


@pytest.mark.slow
def test_its_sky_is_flat(guard):
    """Deviations within blocks of sky: at most half as large again as the truth's, or two levels."""
    grid, sampled = guard
    sky = np.load(GRIDS / "guard.npz")["depth"] == 0
    deviations = []
    for v, t in np.argwhere(~grid.given):
        for y, x in np.ndindex(128 // BLOCK, 128 // BLOCK):
            part = (v, t, *(slice(at * BLOCK, (at + 1) * BLOCK) for at in (y, x)))
            if sky[part].all():
                deviations.append([frames[part].std((0, 1)).mean() for frames in (sampled, grid.truth)])
    found, true = np.mean(deviations, axis=0)
    assert len(deviations) > 1000 and found <= max(1.5 * true, 2)


@pytest.mark.slow
def test_it_is_nearer_to_the_truth_than_the_copies_looks_nearer_than_any_simple_picture_and_is_as_sharp(guard):
    grid, sampled = guard
    copies = {name: make(grid.frames, grid.given) for name, make in BASELINES.items()}
    found, lpips = psnr_by_motion(sampled, grid.truth, grid.given), make_lpips("alex")
    for name, frames in copies.items():
        score = psnr_by_motion(frames, grid.truth, grid.given)
        assert found["all"] > score["all"] + 1 and found["moving"] > score["moving"] + 1, name
    unknown = ~grid.given
    looks = lpips(sampled[unknown], grid.truth[unknown]).mean()
    for name, frames in (copies | moved_baselines(grid.frames, grid.given)).items():
        assert looks < lpips(frames[unknown], grid.truth[unknown]).mean(), name
    assert 0.8 < gradient_energy_by_motion(sampled, grid.truth, grid.given)["all"] < 1.2
