"""Batches that the mesh does not divide: several devices would compute the same examples."""

import dataclasses

import jax
import pytest

from fourreal.data.masks import CLIPS, CutMix
from fourreal.errors import UserError
from fourreal.models import GridDiTConfig
from fourreal.parallel.mesh import EXAMPLE_AXES, MeshConfig, make_mesh, repeats
from fourreal.training.config import load_config
from fourreal.training.prepare import check_batch

NANO = load_config("configs/nano.py")


def test_devices_times_their_examples_is_the_batch_times_its_repeats():
    for lead, axes in EXAMPLE_AXES.items():
        for sizes in ({"data": 2, "fsdp": 3, "grid": 4}, {"data": 16, "fsdp": 1, "grid": 1}):
            devices = 1
            for axis in axes:
                devices *= sizes[axis]
            assert repeats(devices * 5, lead, sizes) == 1
            assert repeats(1, lead, sizes) == devices
    assert repeats(4, 2, {"data": 2, "fsdp": 4, "grid": 1}) == 4  # data alone divides it


@pytest.mark.parametrize(
    ("mesh", "fusion", "batch", "times"),
    [
        (MeshConfig(data=8), "soft", 1, 8),
        (MeshConfig(data=2, fsdp=4), "soft", 4, 4),
        (MeshConfig(data=2, grid=4), "soft", 2, 1),  # grid cuts views and times
        (MeshConfig(data=2, grid=4), "base", 2, 4),  # and the examples of clips
        (MeshConfig(data=2, grid=4), "base", 16, 1),
    ],
)
def test_batch_that_the_mesh_does_not_divide_is_refused_unless_allowed(mesh, fusion, batch, times):
    cuts = CLIPS if fusion == "base" else CutMix()
    data = dataclasses.replace(NANO.data, batch_size=batch, cuts=cuts)
    config = dataclasses.replace(NANO, data=data, grid=GridDiTConfig(fusion))
    with jax.set_mesh(make_mesh(mesh, jax.local_devices())):
        if times == 1:
            check_batch(config)
            return
        with pytest.raises(UserError, match=f"each example would be computed {times} times: give a multiple of 8"):
            check_batch(config)
        check_batch(dataclasses.replace(config, repeat_examples=True))
