"""What the models make of cameras, and the values that training, callers and guidance give them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cameras_around import SIZE, VIEWS, around, batched
from flax import traverse_util

from fourreal.conditions import Cameras
from fourreal.conditions.condition import drop_examples, without
from fourreal.errors import UserError
from fourreal.geometry.rays import plucker_rays
from fourreal.models import GridDiTConfig
from fourreal.scene import Scene


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_unknown_cameras_are_as_no_cameras_and_known_ones_matter(tiny, fusion):
    base, fusion = tiny.config(cameras=True), GridDiTConfig(fusion)
    params, forward = tiny.params(base, fusion), tiny.forward(base, fusion)
    x, sigma, given = tiny.grid(VIEWS, 2).values()
    plain = forward(params, x, sigma, given)
    half = forward(params, x, sigma, given, cameras=batched(around(), (False, True)))
    np.testing.assert_allclose(half[0], plain[0], atol=2e-6)  # numbers near 1; another program sums in another order
    assert np.abs(half[1] - plain[1]).max() > 0.01


def test_fresh_model_ignores_cameras(tiny):
    base, fusion = tiny.config(cameras=True), GridDiTConfig("soft")
    params = traverse_util.unflatten_dict(tiny.initial(base, fusion))
    x, sigma, given = tiny.grid(VIEWS, 2).values()
    forward = tiny.forward(base, fusion)
    told = forward(params, x, sigma, given, cameras=batched(around(), (True, True)))
    np.testing.assert_allclose(told, forward(params, x, sigma, given), atol=2e-6)  # as above


def test_view_stream_alone_is_the_base_on_freeze_time_videos_with_their_cameras(tiny):
    base, fusion = tiny.config(cameras=True), GridDiTConfig("soft", readout="view")
    params = tiny.params(base, fusion, fresh_sync=True)
    x, sigma, given = tiny.grid(VIEWS, 2).values()
    cameras = batched(around(), (True, True))
    grid = tiny.forward(base, fusion)(params, x, sigma, given, cameras=cameras)
    on_clip = tiny.forward(base)
    for t in range(2):
        clip = x[:, :, t], sigma[:, :, t], given[:, :, t]
        expected = on_clip({"base": params["base"]}, *clip, context="freeze_time", cameras=cameras)
        np.testing.assert_allclose(grid[:, :, t], expected, atol=2e-5)  # the tolerance of the same fact without cameras


def test_reference_does_not_matter_to_a_model_that_is_told_the_poses_from_there(tiny):
    """Which camera is the origin is all that `reference` says: poses in that camera's world, rolled to be first, are equal."""
    base, fusion = tiny.config(cameras=True), GridDiTConfig("soft")
    params, forward = tiny.params(base, fusion), tiny.forward(base, fusion)
    x, sigma, given = tiny.grid(VIEWS, 2).values()
    cameras, reference = batched(around(), (True, True)), np.array([1, 2], np.int32)
    own = np.stack([np.linalg.inv(around().c2w[r]) @ around().c2w for r in reference])
    moved = forward(params, x, sigma, given, cameras=cameras._replace(c2w=own, reference=reference))
    out = forward(params, x, sigma, given, cameras=cameras._replace(reference=reference))
    np.testing.assert_allclose(out, moved, atol=2e-5)  # rays to 1e-5, see tests/geometry/test_rays.py
    first = forward(params, x, sigma, given, cameras=cameras._replace(reference=np.zeros(2, np.int32)))
    assert np.abs(out - first).max() > 0.01


def test_null_and_dropped_cameras_are_not_known_and_keep_their_shapes():
    listed, value = (Cameras(),), batched(around(), (True, True))
    null = without(listed, {"cameras": value}, frozenset({"cameras"}))["cameras"]
    assert not null.known.any() and null.known.dtype == bool
    assert jax.tree.map(np.shape, null) == jax.tree.map(np.shape, value)
    half = drop_examples(listed, {"cameras": value}, {"cameras": jnp.array([True, False])})["cameras"]
    np.testing.assert_array_equal(half.known, [False, True])
    np.testing.assert_array_equal(half.c2w, value.c2w)


def test_training_draws_the_reference_camera_and_a_test_takes_the_first():
    scene, given = Scene(np.zeros((VIEWS, 2, SIZE, SIZE, 3), np.uint8), cameras=around()), np.zeros((VIEWS, 2), bool)
    drawn = [Cameras().example(scene, given, np.random.default_rng(seed)) for seed in range(60)]
    assert {int(value.reference) for value in drawn} == set(range(VIEWS))
    assert int(Cameras().example(scene, given, None).reference) == 0
    for value in drawn[:3]:
        assert bool(value.known)
        np.testing.assert_array_equal(value.c2w, around().c2w)
    unknown = Cameras().example(scene._replace(cameras=None), given, None)
    assert not unknown.known and jax.tree.structure(unknown) == jax.tree.structure(drawn[0])
    assert np.isfinite(plucker_rays(unknown, SIZE, SIZE)).all()


def test_callers_cameras_are_checked_against_the_views():
    with pytest.raises(UserError, match=r"expected \[4, 3, 3\]"):
        Cameras().check(around(), 4, 2)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(Cameras().check(around(), VIEWS, 2)))
    far = around().c2w.astype(np.float64) + np.array([[0, 0, 0, 4.5e5], [0, 0, 0, 5.2e6], [0, 0, 0, 9], [0, 0, 0, 0]])
    told = Cameras().check(around()._replace(c2w=far), VIEWS, 2)  # relative before it is cast
    np.testing.assert_allclose(told.c2w[:, :3, 3], around().c2w[:, :3, 3] - around().c2w[0, :3, 3], atol=1e-6)
