"""Epipolar distances where points, cameras and pictures are known."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import minimize

from fourreal.geometry.pinhole import intrinsics, look_at, orbit_arc, project
from fourreal.metrics.epipolar import FEWEST, epipolar, fundamental_matrix, matched, sampson_distance, sift_points

SIDE, VIEWS, TIMES = 64, 3, 2
GIVEN = np.zeros((VIEWS, TIMES), bool)
GIVEN[0], GIVEN[:, 0] = True, True
K = np.stack([intrinsics(50, SIDE), intrinsics(40, SIDE), intrinsics(60, SIDE)])
C2W = orbit_arc(np.zeros(3), 4.0, np.array([0.0, 8.0, 20.0]), np.array([10.0, 15.0, 5.0]))


@pytest.fixture(scope="module")
def wall() -> np.ndarray:
    """A textured plane through the middle of the scene, before the cameras, the same at both times."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(256, 256)), 3)
    texture = (128 + 40 * texture / texture.std()).clip(0, 255)
    frames = []
    for k, c2w in zip(K.astype(float), C2W.astype(float), strict=True):
        row, column = np.mgrid[:SIDE, :SIDE] + 0.5
        pixels = np.stack([column, row, np.ones_like(row)], -1)
        rays = pixels @ np.linalg.inv(k).T @ c2w[:3, :3].T
        points = c2w[:3, 3] - rays * (c2w[0, 3] / rays[..., :1])  # where x = 0
        places = 128 + 40 * points[..., [2, 1]]
        frames.append(map_coordinates(texture, np.moveaxis(places, -1, 0), order=1, mode="wrap"))
    frames = np.stack(frames).round().astype(np.uint8)
    return np.repeat(np.repeat(frames[:, None, ..., None], 3, axis=-1), TIMES, axis=1)


def test_projections_of_one_point_have_no_distance_and_a_pixel_across_the_line_is_that_of_the_nearest_pair_that_fits():
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    (x_a, _), (x_b, _) = (project(points, K[v].astype(float), C2W[v].astype(float)) for v in (0, 1))
    F = fundamental_matrix(K[0], C2W[0], K[1], C2W[1])
    assert sampson_distance(F, x_a, x_b) == pytest.approx(np.zeros(20), abs=1e-4)  # cameras are float32
    off = x_b + np.random.default_rng(1).normal(0, 0.3, x_b.shape)
    for a, b, distance in zip(x_a, off, sampson_distance(F, x_a, off), strict=True):

        def fits(z):
            return np.append(z[2:], 1) @ F @ np.append(z[:2], 1) / np.linalg.norm(F)

        start = np.concatenate([a, b])
        nearest = minimize(lambda z, s=start: np.square(z - s).sum(), start, constraints={"type": "eq", "fun": fits})
        assert distance == pytest.approx(np.linalg.norm(nearest.x - start), rel=0.02, abs=1e-3)


def test_points_are_found_where_they_are_in_small_frames():
    frame = np.full((SIDE, SIDE, 3), 40, np.uint8)
    row, column = np.mgrid[:SIDE, :SIDE] + 0.5
    for x, y in ((20.25, 15.5), (40.5, 44.75)):
        frame += (180 * np.exp(-((column - x) ** 2 + (row - y) ** 2) / 8))[..., None].astype(np.uint8)
    found, _ = sift_points(frame)
    for place in ((20.25, 15.5), (40.5, 44.75)):
        assert np.linalg.norm(found - place, axis=1).min() < 0.1


def test_matches_are_mutual_and_clear():
    far = 100 * np.eye(128)
    a = np.zeros((4, 2)) + np.arange(4)[:, None], far[:4]
    b = np.zeros((5, 2)) + 10 * np.arange(5)[:, None], far[[1, 0, 2, 2, 9]] + far[[20, 21, 22, 23, 24]] / 5
    x_a, x_b = matched(a, b)  # of the third, two are as near; the fourth has none
    assert x_a[:, 0].tolist() == [0, 1] and x_b[:, 0].tolist() == [10, 0]


def test_a_wall_seen_by_its_cameras_fits_and_by_others_does_not(wall):
    right = epipolar(wall, GIVEN, K, C2W)
    assert right["median"] < 0.2 and right["inliers"] > 0.95 and right["matches"] > FEWEST
    tilted = C2W.copy()
    tilted[1] = look_at(C2W[1, :3, 3], np.array([0, 0, 0.3]))
    wrong = epipolar(wall, GIVEN, K, tilted)
    assert wrong["median"] > 1 and wrong["inliers"] < 0.5 and wrong["matches"] == right["matches"]


def test_given_pairs_do_not_count_and_few_matches_give_a_count_alone(wall):
    harmed = wall.copy()
    harmed[:, 0] = 0  # time 0 is given in all views
    assert epipolar(harmed, GIVEN, K, C2W) == epipolar(wall, GIVEN, K, C2W)
    for given, c2w in (
        (np.ones_like(GIVEN), C2W),
        (GIVEN, C2W[[0, 0, 0]]),
    ):  # cameras at one place have no epipolar lines
        assert all(math.isnan(value) for value in epipolar(wall, given, K, c2w).values())
    harmed[1, 1, :, :40] = harmed[1, 1, :40] = 0
    found = epipolar(harmed, GIVEN, K, C2W)
    assert 0 < 2 * found["matches"] < FEWEST and math.isnan(found["median"]) and math.isnan(found["inliers"])
