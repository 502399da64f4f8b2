"""Rays of cameras against points worked out in another way."""

import jax
import numpy as np
import pytest

from fourreal.geometry import pinhole
from fourreal.geometry.rays import check_cameras, focus_distance, from_first, plucker_rays
from fourreal.scene import Cameras

VIEWS, SIZE = 3, 4
TOLERANCE = 2e-6  # fp32: sums of a few products of numbers about 1


def around(views: int = VIEWS, distance: float = 2.5) -> Cameras:
    """Cameras around (1, -2, 0.5), 60 degrees in all, each with its own K."""
    share = np.linspace(0, 1, views)
    c2w = pinhole.orbit_arc(np.array([1, -2, 0.5]), distance, 30 + 60 * share, 20 + 10 * share)
    return Cameras(np.stack([pinhole.intrinsics(40 + 5 * v, SIZE) for v in range(views)]), c2w)


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


def tripod(jitter: float, seed: int, total: float = 90, views: int = 4) -> np.ndarray:
    """Cameras that turn in one place, but for `jitter` in every direction."""
    eyes = jitter * np.random.default_rng(seed).normal(size=(views, 3))
    angles = np.radians(np.linspace(0, total, views))
    return np.stack(
        [pinhole.look_at(e, e + np.array([np.cos(a), np.sin(a), 0.1])) for e, a in zip(eyes, angles, strict=True)]
    )


def test_a_pan_on_a_tripod_that_shakes_is_a_rotation_only():
    """Its axes meet nowhere: a millimetre of noise must not become a place. An orbit's largest moment is 0.6 to 1."""
    c2w = np.stack([tripod(0, 0), *(tripod(1e-3, seed) for seed in range(60))])
    rays = np.asarray(
        plucker_rays(Cameras(np.broadcast_to(pinhole.intrinsics(40, SIZE), (61, 4, 3, 3)), c2w), SIZE, SIZE)
    )
    largest = np.abs(rays[1:, ..., 3:]).max((1, 2, 3, 4))
    # three errors away from 0 by chance, and in front: some in a hundred; never the 49 of a unit that is noise itself
    assert np.mean(largest == 0) > 0.8 and largest.max() < 4
    np.testing.assert_allclose(
        rays[1:][largest == 0], np.broadcast_to(rays[0], rays[1:][largest == 0].shape), atol=TOLERANCE
    )


@pytest.mark.parametrize("aim", [0.0, 0.03, 0.1])
def test_cameras_around_a_subject_that_aim_badly_still_measure_its_distance(aim):
    """Off by up to a tenth of the distance, over 60 degrees: some shares of it."""
    rng, eyes = np.random.default_rng(0), around(6).c2w[:, :3, 3]
    aims = [1, -2, 0.5] + 2.5 * aim * rng.normal(size=(20, 6, 3))
    c2w = np.stack([np.stack([pinhole.look_at(*pair) for pair in zip(eyes, rig, strict=True)]) for rig in aims])
    np.testing.assert_allclose(focus_distance(c2w), np.full(20, 2.5), rtol=4 * aim + 1e-5)


def test_a_walk_that_turns_keeps_its_steps():
    """Axes that do not meet, but places in a row are no noise: a crane that rises by 1 while it pans."""
    eyes, angles = np.linspace(0, 1, 4), np.radians(np.linspace(0, 60, 4))
    crane = np.stack([pinhole.look_at([0, 0, z], [np.cos(a), np.sin(a), z]) for z, a in zip(eyes, angles, strict=True)])
    np.testing.assert_allclose(focus_distance(crane), 1, rtol=1e-6)


def test_places_far_away_are_made_relative_before_they_lose_digits():
    """UTM: 5.2e6 m north; in fp32 its steps are 0.5 m, a sixth of this rig's distance."""
    cameras, far = around(), around().c2w.astype(np.float64)
    far[:, :3, 3] += [4.5e5, 5.2e6, 120]
    rays = plucker_rays(cameras._replace(c2w=from_first(far).astype(np.float32)), SIZE, SIZE)
    np.testing.assert_allclose(rays, plucker_rays(cameras, SIZE, SIZE), atol=TOLERANCE)
    lost = plucker_rays(cameras._replace(c2w=far.astype(np.float32)), SIZE, SIZE)
    assert np.abs(lost - rays).max() > 0.05


def test_named_focus_is_the_unit():
    cameras = around()
    rays = plucker_rays(cameras._replace(focus=np.float32(5.0)), SIZE, SIZE)
    np.testing.assert_allclose(rays[..., 3:] * 2, plucker_rays(cameras, SIZE, SIZE)[..., 3:], atol=TOLERANCE)


@pytest.mark.parametrize("reference", range(VIEWS))
def test_reference_camera_is_the_origin_as_if_it_stood_first(reference):
    cameras = around()
    rays = plucker_rays(cameras._replace(reference=np.int32(reference)), SIZE, SIZE)
    order = np.roll(np.arange(VIEWS), -reference)
    first = plucker_rays(Cameras(cameras.K[order], cameras.c2w[order]), SIZE, SIZE)
    np.testing.assert_allclose(np.asarray(rays)[order], first, atol=TOLERANCE)
    own = np.linalg.inv(cameras.c2w[reference]) @ cameras.c2w  # the world of the reference camera
    again = plucker_rays(cameras._replace(c2w=own, reference=np.int32(reference)), SIZE, SIZE)
    np.testing.assert_allclose(rays, again, atol=5 * TOLERANCE)  # an inverse and a product more, positions about 3
    np.testing.assert_allclose(rays[reference, ..., 3:], 0, atol=TOLERANCE)  # rays through the origin


def test_every_example_of_a_batch_has_its_own_reference():
    cameras = around()
    alone = [plucker_rays(cameras._replace(reference=np.int32(r)), SIZE, SIZE) for r in (2, 0)]
    K, c2w = (np.stack([array] * 2) for array in cameras[:2])
    together = plucker_rays(Cameras(K, c2w, reference=np.array([2, 0])), SIZE, SIZE)
    np.testing.assert_allclose(together, np.stack(alone), atol=TOLERANCE)


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
