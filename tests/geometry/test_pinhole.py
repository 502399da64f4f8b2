"""Cameras against answers worked out by hand."""

import numpy as np
import pytest

from fourreal.geometry import pinhole as cameras


def test_intrinsics_put_the_edge_of_the_view_on_the_edge_of_the_picture():
    K = cameras.intrinsics(90, 64)
    assert np.allclose(K, [[32, 0, 32], [0, 32, 32], [0, 0, 1]], atol=1e-5)


def test_look_at_from_minus_y_has_x_right_z_down_and_y_forward():
    c2w = cameras.look_at([0, -5, 0], [0, 0, 0])
    expected = np.array([[1, 0, 0, 0], [0, 0, 1, -5], [0, -1, 0, 0], [0, 0, 0, 1]])
    assert np.allclose(c2w, expected, atol=1e-7)


def test_projection_of_known_points():
    K, c2w = cameras.intrinsics(90, 64), cameras.look_at([0, -5, 0], [0, 0, 0])
    pixels, depth = cameras.project(np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [2, 3, -1.0]]), K, c2w)
    # f = 32: one unit aside at depth 5 is 6.4 pixels; up in the world is up in the picture (a smaller row)
    assert np.allclose(pixels, [[32, 32], [38.4, 32], [32, 25.6], [40, 36]], atol=1e-4)
    assert np.allclose(depth, [5, 5, 5, 8], atol=1e-6)


def test_unproject_undoes_project():
    K, c2w = cameras.intrinsics(40, 8), cameras.look_at([3, -4, 2], [0, 0, 1])
    depth = np.random.default_rng(0).uniform(1, 9, (8, 8))
    pixels, z = cameras.project(cameras.unproject(depth, K, c2w).reshape(-1, 3), K, c2w)
    row, column = np.mgrid[:8, :8] + 0.5
    assert np.allclose(pixels, np.stack([column.ravel(), row.ravel()], -1), atol=1e-4)
    assert np.allclose(z, depth.ravel(), rtol=1e-5)


def test_orbit_arc_is_at_its_distance_and_elevation_and_turns_counter_clockwise():
    arc = cameras.orbit_arc(np.array([1.0, 2.0, 3.0]), 4.0, np.array([0.0, 90.0]), 30.0)
    offset = arc[:, :3, 3] - [1, 2, 3]
    flat = 4 * np.cos(np.radians(30))
    assert np.allclose(offset, [[flat, 0, 2], [0, flat, 2]], atol=1e-5)
    pixels, depth = cameras.project(np.array([[1.0, 2.0, 3.0]]), cameras.intrinsics(50, 64), arc[1])
    assert np.allclose(pixels, 32, atol=1e-4) and np.allclose(depth, 4, atol=1e-5)


def test_every_camera_is_a_rotation_without_mirroring():
    arc = cameras.orbit_arc(np.zeros(3), 3.0, np.linspace(0, 300, 5), np.linspace(5, 80, 5))
    for c2w in arc:
        assert np.allclose(c2w[:3, :3] @ c2w[:3, :3].T, np.eye(3), atol=1e-6)
        assert np.linalg.det(c2w[:3, :3]) == pytest.approx(1, abs=1e-6)


def test_opengl_axes_flip_y_and_z_and_back():
    c2w = cameras.look_at([0, -5, 0], [0, 0, 0])
    gl = cameras.opengl_from_opencv(c2w)
    assert np.allclose(gl[:3, 1], [0, 0, 1]) and np.allclose(gl[:3, 2], [0, -1, 0])
    assert np.array_equal(cameras.opencv_from_opengl(gl), c2w)


def test_a_camera_that_looks_straight_up_is_refused_in_one_line():
    with pytest.raises(ValueError, match="cannot look along 'up'"):
        cameras.look_at([0, 0, 0], [0, 0, 5])
