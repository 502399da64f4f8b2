"""Rays of cameras against points worked out in another way, and what the models make of them."""

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from fourreal.data import cameras as pinhole
from fourreal.models import Cameras, GridDiTConfig, VideoDiT
from fourreal.models.cameras import check_cameras, focus_distance, plucker_rays

VIEWS, SIZE = 3, 4
TOLERANCE = 2e-6  # fp32: sums of a few products of numbers about 1


def around(views: int = VIEWS, distance: float = 2.5) -> Cameras:
    """Cameras around (1, -2, 0.5), 60 degrees in all, each with its own K."""
    share = np.linspace(0, 1, views)
    c2w = pinhole.orbit_arc(np.array([1, -2, 0.5]), distance, 30 + 60 * share, 20 + 10 * share)
    return Cameras(np.stack([pinhole.intrinsics(40 + 5 * v, SIZE) for v in range(views)]), c2w)


def batched(cameras: Cameras, known: tuple[bool, ...]) -> Cameras:
    K, c2w = (np.stack([array] * len(known)) for array in cameras[:2])
    return Cameras(K, c2w, known=np.array(known))


def test_every_point_on_a_pixels_ray_has_its_moment():
    """The moment of a line is p x d for any of its points p: here points that `unproject` finds, seen by the first camera."""
    cameras = around()
    rays = np.asarray(plucker_rays(cameras, SIZE, SIZE))
    to_first = np.linalg.inv(cameras.c2w[0].astype(np.float64))
    for v in range(VIEWS):
        for depth in (0.5, 3.0):
            points = pinhole.unproject(np.full((SIZE, SIZE), depth), cameras.K[v], cameras.c2w[v])
            points = (points @ to_first[:3, :3].T + to_first[:3, 3]) / 2.5
            np.testing.assert_allclose(np.cross(points, rays[v, ..., :3]), rays[v, ..., 3:], atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(rays[..., :3], axis=-1), 1, atol=TOLERANCE)


def test_rays_do_not_depend_on_the_worlds_place_direction_and_unit():
    cameras = around()
    turn = pinhole.look_at([3, 1, 2], [0, 0, 1])[:3, :3]
    moved = cameras.c2w.copy()
    moved[:, :3, :3] = turn @ moved[:, :3, :3]
    moved[:, :3, 3] = 7 * (cameras.c2w[:, :3, 3] @ turn.T) + [10, -20, 5]
    rays, again = (plucker_rays(Cameras(cameras.K, c2w), SIZE, SIZE) for c2w in (cameras.c2w, moved))
    np.testing.assert_allclose(rays, again, atol=2e-5)  # positions about 30 in fp32 are known to 2e-6, times 7 / 2.5


def test_focus_is_the_distance_to_what_the_cameras_surround():
    np.testing.assert_allclose(focus_distance(around(distance=2.5).c2w), 2.5, rtol=1e-5)
    nearer = pinhole.orbit_arc(np.zeros(3), np.array([4.0, 3, 2]), np.array([0.0, 10, 20]), 15)
    np.testing.assert_allclose(focus_distance(nearer), 4, rtol=1e-5)


def test_parallel_axes_are_measured_by_the_farthest_camera_and_one_place_by_one():
    side_by_side = np.stack([np.eye(4)] * VIEWS).astype(np.float32)
    assert focus_distance(side_by_side) == 1
    side_by_side[:, 0, 3] = [5, 6, 8]
    assert focus_distance(side_by_side) == 3
    outward = pinhole.opengl_from_opencv(around().c2w)  # the axes turned round: they meet behind the cameras
    farthest = np.linalg.norm(outward[:, :3, 3] - outward[0, :3, 3], axis=1).max()
    np.testing.assert_allclose(focus_distance(outward), farthest, rtol=1e-6)


def test_named_focus_is_the_unit():
    cameras = around()
    rays = plucker_rays(cameras._replace(focus=np.float32(5.0)), SIZE, SIZE)
    np.testing.assert_allclose(rays[..., 3:] * 2, plucker_rays(cameras, SIZE, SIZE)[..., 3:], atol=TOLERANCE)


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


def test_model_without_cameras_refuses_them(tiny):
    with pytest.raises(ValueError, match="takes no cameras"):
        VideoDiT(tiny.config(), rngs=nnx.Rngs(0)).embed_cameras(batched(around(), (True,)), SIZE, SIZE)


def test_gradients_are_finite_where_cameras_stand_in_one_place():
    still = np.stack([np.eye(4)] * VIEWS).astype(np.float32)
    gradient = jax.grad(lambda c2w: plucker_rays(Cameras(around().K, c2w), SIZE, SIZE).sum())(still)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c._replace(K=c.K[:2]), r"K is \[2, 3, 3\]; expected \[3, 3, 3\]"),
        (lambda c: c._replace(c2w=c.c2w * np.nan), "c2w is not finite"),
        (lambda c: c._replace(K=-c.K), "focal length"),
        (lambda c: c._replace(c2w=2 * c.c2w), "no rotations"),
        (lambda c: c._replace(c2w=c.c2w * np.array([1, 1, -1, 1], np.float32)), "no rotations"),
    ],
)
def test_what_is_no_camera_is_refused(change, words):
    check_cameras(around(), VIEWS)
    with pytest.raises(ValueError, match=words):
        check_cameras(change(around()), VIEWS)
