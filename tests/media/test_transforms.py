"""Cameras from files, against answers worked out by hand."""

import json

import numpy as np
import pytest

from fourreal.geometry.rays import focus_distance
from fourreal.media.transforms import read_transforms

SIZE = (48, 64)


def write(path, frames, **top):
    path.write_text(json.dumps({**top, "frames": frames}))
    return str(path)


def pose(x: float) -> list:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix.tolist()


def test_nerfstudio_file_is_read_in_the_order_of_its_pictures_and_turned_to_opencv(tmp_path):
    """Picture 10 comes after 9; OpenGL's identity looks along -z with y up; K follows from 128 x 96 to 64 x 48."""
    frames = [{"file_path": f"images/{n}.png", "transform_matrix": pose(n)} for n in (10, 9, 8)]
    path = write(tmp_path / "a.json", frames, fl_x=100, fl_y=110, cx=60, cy=50, w=128, h=96, k1=0.1)
    cameras, line = read_transforms(path, 3, SIZE)
    np.testing.assert_array_equal(cameras.c2w[:, 0, 3], [8, 9, 10])
    np.testing.assert_array_equal(cameras.c2w[0, :3, :3], np.diag([1, -1, -1]))
    np.testing.assert_allclose(cameras.K[0], [[50, 0, 30], [0, 55, 25], [0, 0, 1]], atol=1e-5)
    assert "images/8.png, images/9.png" in line and "lens distortion is ignored" in line


def test_angles_of_both_sides_give_both_focal_lengths(tmp_path):
    frames = [{"file_path": "9" * 5000, "transform_matrix": pose(0)}] * 2
    path = write(tmp_path / "a.json", frames, camera_angle_x=np.pi / 2, camera_angle_y=np.pi / 3)
    K = read_transforms(path, 2, SIZE)[0].K[0]
    np.testing.assert_allclose([K[0, 0], K[1, 1]], [32, 24 * 3**0.5], rtol=1e-6)


def test_blender_angle_gives_the_focal_length_and_many_cameras_are_cut_evenly(tmp_path):
    frames = [{"file_path": f"./r_{n}", "transform_matrix": pose(n)} for n in range(7)]
    path = write(tmp_path / "a.json", frames, camera_angle_x=np.pi / 2)
    cameras, _ = read_transforms(path, 3, (64, 64))
    np.testing.assert_array_equal(cameras.c2w[:, 0, 3], [0, 3, 6])
    np.testing.assert_allclose(cameras.K[1], [[32, 0, 32], [0, 32, 32], [0, 0, 1]], atol=1e-4)


def test_frames_of_one_label_are_one_camera(tmp_path):
    frames = [{"camera_label": f"cam{v}", "transform_matrix": pose(v), "fl_x": 9} for v in (1, 0) for _ in range(4)]
    cameras, line = read_transforms(write(tmp_path / "a.json", frames), 2, SIZE)
    np.testing.assert_array_equal(cameras.c2w[:, 0, 3], [1, 0])
    assert line.endswith("cameras of cam1, cam0")
    assert focus_distance(cameras.c2w) == 1  # parallel: the other camera's distance


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no list of frames"),
        ('{"frames": []}', "no list of frames"),
        ('{"frames": [{"fl_x": 9}, {"fl_x": 9}]}', "lacks 'transform_matrix'"),
        (
            '{"frames": [{"transform_matrix": [[1, 0], [0, 1]], "fl_x": 9}], "n": 0}',
            "1 cameras; the checkpoint's grid needs 2",
        ),
        (json.dumps({"frames": [{"transform_matrix": [[1]], "fl_x": 9}] * 2}), r"transform_matrix is \[1, 1\]"),
        (json.dumps({"frames": [{"transform_matrix": pose(0)}] * 2}), "lacks 'camera_angle_x'"),
        (json.dumps({"frames": [{"transform_matrix": pose(0), "fl_x": "wide"}] * 2}), "could not convert"),
        (json.dumps({"frames": [{"transform_matrix": pose(np.nan), "fl_x": 9}] * 2}), "c2w is not finite"),
        (json.dumps({"frames": [{"transform_matrix": (2 * np.eye(4)).tolist(), "fl_x": 9}] * 2}), "no rotations"),
        (json.dumps({"camera_model": "OPENCV_FISHEYE", "frames": [{}, {}]}), "fisheye"),
    ],
)
def test_what_is_no_camera_file_says_what_was_expected(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_transforms(str(tmp_path / "a.json"), 2, SIZE)
