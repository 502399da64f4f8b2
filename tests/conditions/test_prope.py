"""Cameras as relative positions: a fresh model is the one without, and what a trained one sees is relative."""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cameras_around import SIZE, VIEWS, around, batched
from flax import nnx, traverse_util

from fourreal.conditions import Cameras, Condition, Embedded, Prope
from fourreal.conditions.condition import complete, drop_examples, without
from fourreal.errors import UserError
from fourreal.geometry import pinhole
from fourreal.geometry.rays import projections
from fourreal.grid import Known
from fourreal.models import GridDiTConfig
from fourreal.models.build import fresh_params, make_forward, model_table, split_model
from fourreal.nn.low_rank import UP
from fourreal.scene import Cameras as Value
from fourreal.scene import Scene
from fourreal.training.state import split_params

TIMES = 2
FUSIONS = ["soft", "hard", "none", "sequential", "fused"]
HEADS = {"heads": 3}  # of 8 numbers


class GivenPose(nnx.Module):
    def __call__(self, pose, cells, size) -> Embedded:
        return Embedded(pose=pose)


@dataclasses.dataclass(frozen=True)
class Pose(Condition):
    """The matrices themselves, one a cell."""

    kind = "test_pose"
    pose = True
    axes = {"": "b v t"}  # noqa: RUF012

    def module(self, base, rngs):
        return GivenPose()


def both(tiny, fusion: str):
    """(config, grid, data, forward) of a model with `prope`."""
    base = tiny.config(**HEADS, conditions=(Prope(),))
    views = 1 if fusion == "base" else VIEWS
    return base, GridDiTConfig(fusion), tiny.grid(views, TIMES)


def cameras(views: int = VIEWS) -> Value:
    return batched(around(views), (True, True))


@pytest.mark.parametrize("fusion", [*FUSIONS, "base"])
def test_fresh_model_is_bit_for_bit_the_model_without(tiny, fusion):
    """All other parameters are away from zero."""
    base, grid, data = both(tiny, fusion)
    plain = replace(base, conditions=())
    params = tiny.params(plain, grid)
    added = {path: value for path, value in tiny.initial(base, None).items() if "pose" in path}
    assert added and not any(value.any() for value in added.values())
    flat = traverse_util.flatten_dict(params)
    assert set(added).isdisjoint(flat)
    told = traverse_util.unflatten_dict(flat | added)
    inputs = (data["x"], data["sigma"], data["given"])
    outputs = []
    for config, parameters, conditions in ((plain, params, {}), (base, told, {"prope": cameras(data["x"].shape[1])})):
        forward = jax.jit(make_forward(split_model(config, grid)[0]))
        outputs.append(np.asarray(forward(parameters, *inputs, conditions)))
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_relative_poses_matter_in_every_fusion_and_each_cell_s_does(tiny, fusion):
    base, grid = tiny.config(**HEADS, conditions=(Pose(),)), GridDiTConfig(fusion)
    params, forward = tiny.params(base, grid), tiny.forward(base, grid)
    x, sigma, given = tiny.grid(VIEWS, TIMES).values()
    rng = np.random.default_rng(0)
    pose = np.tile(np.eye(4, dtype=np.float32), (2, VIEWS, TIMES, 1, 1))
    pose[..., :3, :] += 0.3 * rng.normal(size=(2, VIEWS, TIMES, 3, 4))
    world = np.eye(4, dtype=np.float32)
    world[:3] += 0.3 * rng.normal(size=(3, 4))
    out = forward(params, x, sigma, given, test_pose=pose)
    moved = forward(params, x, sigma, given, test_pose=pose @ world)
    np.testing.assert_allclose(moved, out, atol=5e-5)  # P G carries rounding, see tests/nn/test_projective.py
    for cell in ((0, 1), (2, 0)):
        other = pose.copy()
        other[:, *cell] = pose[:, *cell] @ world
        assert np.abs(forward(params, x, sigma, given, test_pose=other) - out).max() > 1e-3


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_the_world_and_unit_of_cameras_do_not_matter_and_their_places_do(tiny, fusion):
    base, grid, data = both(tiny, fusion)
    params, forward = tiny.params(base, grid), tiny.forward(base, grid)
    value, inputs = cameras(), (data["x"], data["sigma"], data["given"])
    out = forward(params, *inputs, prope=value)
    world = pinhole.orbit_arc(np.array([0.3, 0.4, -0.2]), 1.5, np.array([77.0]), np.array([-35.0]))[0].astype(
        np.float32
    )
    moved = world @ value.c2w
    moved[..., :3, 3] *= 7
    # poses are made relative to the first camera in fp32, numbers below 20, and divided by the focus distance
    np.testing.assert_allclose(forward(params, *inputs, prope=value._replace(c2w=moved)), out, atol=1e-4)
    nearer = cameras()._replace(c2w=np.stack([around(distance=2.5).c2w[[0, 2, 1]]] * 2))
    assert np.abs(forward(params, *inputs, prope=nearer) - out).max() > 0.01
    wider = value._replace(K=value.K * np.float32([[1.5, 1, 1], [1, 1.5, 1], [1, 1, 1]]))
    wider.K[:, 1] = value.K[:, 1]  # lenses that differ
    assert np.abs(forward(params, *inputs, prope=wider) - out).max() > 0.01


def test_projection_is_that_of_the_lens_and_pose_in_fp64():
    value = around()
    origin = np.linalg.inv(value.c2w[0])
    c2w = origin @ value.c2w
    c2w[:, :3, 3] /= 2.5  # the distance of what all look at
    lens = np.tile(np.eye(4), (VIEWS, 1, 1))
    lens[:, 0, :3] = value.K[:, 0] / SIZE - [0, 0, 0.5]
    lens[:, 1, :3] = value.K[:, 1] / (2 * SIZE) - [0, 0, 0.5]
    np.testing.assert_allclose(projections(value, 2 * SIZE, SIZE), lens @ np.linalg.inv(c2w), atol=1e-5)


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_cameras_not_told_dropped_and_unknown_are_one(tiny, fusion):
    base, grid, data = both(tiny, fusion)
    params, forward = tiny.params(base, grid), tiny.forward(base, grid)
    inputs, value = (data["x"], data["sigma"], data["given"]), cameras()
    untold, told = forward(params, *inputs), forward(params, *inputs, prope=value)
    half = forward(params, *inputs, prope=value._replace(known=np.array([False, True])))
    np.testing.assert_allclose(half[0], untold[0], atol=2e-6)  # another program sums in another order
    np.testing.assert_allclose(half[1], told[1], atol=2e-6)
    assert np.abs(told - untold).max() > 0.01
    null = without(base.conditions, {"prope": value}, frozenset({"prope"}))["prope"]
    np.testing.assert_allclose(forward(params, *inputs, prope=null), untold, atol=2e-6)
    nowhere = base.conditions[0].module(base, None)(null, None, (SIZE, SIZE)).pose
    np.testing.assert_array_equal(nowhere, np.broadcast_to(np.eye(4), nowhere.shape))
    dropped = drop_examples(base.conditions, {"prope": value}, {"prope": jnp.array([True, False])})["prope"]
    np.testing.assert_array_equal(dropped.known, [False, True])
    known = Known(jnp.asarray(data["x"]), jnp.asarray(data["given"]))
    assert not complete(base.conditions, {}, known)["prope"].known.any()


def test_a_scene_without_cameras_is_an_example_of_unknown_ones():
    scene, given = Scene(np.zeros((VIEWS, 2, SIZE, SIZE, 3), np.uint8)), np.zeros((VIEWS, 2), bool)
    assert not Prope().example(scene, given, None).known
    drawn = Prope().example(scene._replace(cameras=around()), given, np.random.default_rng(0))
    assert drawn.known and 0 <= int(drawn.reference) < VIEWS


def test_rays_and_relative_positions_stand_beside_each_other(tiny):
    base, grid = tiny.config(**HEADS, conditions=(Cameras(), Prope())), GridDiTConfig("soft")
    params, forward = tiny.params(base, grid), tiny.forward(base, grid)
    inputs, value = tiny.grid(VIEWS, TIMES).values(), cameras()
    out = forward(params, *inputs, cameras=value, prope=value)
    for one in ("cameras", "prope"):
        assert np.abs(forward(params, *inputs, **{one: value}) - out).max() > 0.01


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_gradients_reach_the_fresh_output_map_of_every_layer(tiny, fusion):
    base, grid, data = both(tiny, fusion)
    params, forward = fresh_params(base, grid, 0), make_forward(split_model(base, grid)[0])

    def loss(params):
        return jnp.mean(forward(params, data["x"], data["sigma"], data["given"], {"prope": cameras()}) ** 2)

    found = jax.jit(jax.grad(loss))(params)["base"]["blocks"]["pose"]["prope"]
    assert all((np.abs(layer).max() > 0) for name in ("kernel", "bias") for layer in np.asarray(found[name]))


@pytest.mark.parametrize("trains", ["sync_and_conditions", "attention", "lora", "all", "sync"])
def test_output_map_trains_with_the_conditions(tiny, trains):
    base, grid, _ = both(tiny, "soft")
    trained, _ = split_params(tiny.params(base, grid), model_table(base, grid), trains)
    names = traverse_util.flatten_dict(trained, sep=".")
    assert ("base.blocks.pose.prope.kernel" in names) == (trains != "sync")


@pytest.mark.parametrize("maps", [("attention.*",), ("*",)])
def test_low_rank_additions_are_those_of_the_model_without(tiny, maps):
    found = []
    for conditions in ((), (Prope(),)):
        base = tiny.config(**HEADS, conditions=conditions, lora_rank=2, lora_maps=maps)
        found.append({path for path in tiny.initial(base, None) if path[-1] == UP})
    assert found[0] == found[1] and found[0]


def test_head_size_that_does_not_divide_is_refused_in_one_line(tiny):
    with pytest.raises(UserError, match="for prope the head size must be a multiple of 8"):
        tiny.config(heads=2, conditions=(Prope(),))
