"""Cameras from files: what a frame means, against answers worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from fourreal.geometry import pinhole
from fourreal.geometry.conventions import readings
from fourreal.media.lens import Lens
from fourreal.media.pairing import stations
from fourreal.media.transforms import name_parts, read_cameras

SIZE = (48, 64)


def write(path, frames, **top):
    path.write_text(json.dumps({**top, "frames": frames}))
    return str(path)


def pose(x: float) -> list:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix.tolist()


def read_one(tmp_path, frame=None, **top):
    return read_cameras(write(tmp_path / "a.json", [{"transform_matrix": pose(0), **(frame or {})}], **top)).frames[0]


def test_opengl_s_identity_looks_along_minus_z_with_y_up(tmp_path):
    camera = read_one(tmp_path, fl_x=100, fl_y=110, cx=60, cy=50, w=128, h=96)
    np.testing.assert_array_equal(camera.c2w[:3, :3], np.diag([1, -1, -1]))
    np.testing.assert_allclose(camera.intrinsics((96, 128)), [[100, 0, 60], [0, 110, 50], [0, 0, 1]])
    np.testing.assert_allclose(camera.intrinsics(SIZE), [[50, 0, 30], [0, 55, 25], [0, 0, 1]])


def test_angles_give_focal_lengths_of_the_picture_s_real_size(tmp_path):
    """The 800 x 800 of Blender's pictures, not the model's 64: 90 degrees across are a focal length of half the width."""
    Image.new("RGB", (800, 600)).save(tmp_path / "r_0.png")
    camera = read_one(tmp_path, {"file_path": "./r_0"}, camera_angle_x=np.pi / 2, camera_angle_y=np.pi / 3)
    assert camera.size == (600, 800)
    K = camera.intrinsics((600, 800))
    np.testing.assert_allclose(K, [[400, 0, 400], [0, 300 * 3**0.5, 300], [0, 0, 1]])
    alone = read_one(tmp_path, camera_angle_x=np.pi / 2)
    assert alone.size is None
    np.testing.assert_allclose(alone.intrinsics((100, 200)), [[100, 0, 100], [0, 100, 50], [0, 0, 1]])


def test_size_of_a_picture_on_its_side_is_the_upright_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "p.jpg", exif=exif)
    assert read_one(tmp_path, {"file_path": "p.jpg"}, fl_x=9).size == (40, 30)


def test_a_frame_s_own_angle_is_not_overruled_by_the_file_s_focal_length(tmp_path):
    camera = read_one(tmp_path, {"camera_angle_x": np.pi / 2}, fl_x=7, w=64, h=48)
    np.testing.assert_allclose(camera.intrinsics(SIZE)[0, 0], 32)


@pytest.mark.parametrize("size", [(96, 96), (128, 96), (90, 128)])
def test_pictures_of_another_aspect_are_refused(tmp_path, size):
    camera = read_one(tmp_path, {"file_path": "a.png"}, fl_x=100, w=128, h=96)
    with pytest.raises(
        ValueError, match=rf"camera a.png is of pictures of 128x96, and this one has {size[1]}x{size[0]}"
    ):
        camera.intrinsics(size)


def test_halved_odd_pictures_are_of_the_same_aspect(tmp_path):
    camera = read_one(tmp_path, fl_x=100, w=1285, h=963)
    np.testing.assert_allclose(camera.intrinsics((481, 642))[0, 0], 100 * 642 / 1285)


@pytest.mark.parametrize(
    ("keys", "lens"),
    [
        ({}, Lens()),
        ({"camera_model": "PINHOLE", "k1": 0.0}, Lens()),
        ({"k1": 0.1, "p2": 0.3}, Lens(False, (0.1, 0, 0, 0.3, 0, 0, 0, 0))),
        ({"camera_model": "opencv", "k6": 0.6, "k3": 0.3}, Lens(False, (0, 0, 0, 0, 0.3, 0, 0, 0.6))),
        ({"camera_model": "OPENCV_FISHEYE", "k4": 0.4}, Lens(True, (0, 0, 0, 0.4))),
        ({"camera_model": "OPENCV", "is_fisheye": True}, Lens(True)),
    ],
)
def test_camera_model_of_each_frame(tmp_path, keys, lens):
    found = read_one(tmp_path, {"fl_x": 9, **keys}, camera_model="PINHOLE").lens
    assert found == lens and bool(found) == (lens != Lens())


def test_frames_of_one_label_or_of_one_pose_at_many_times_are_one_camera(tmp_path):
    labelled = [{"camera_label": f"cam{v}", "transform_matrix": pose(v), "fl_x": 9} for v in (10, 9) for _ in range(4)]
    found = stations(read_cameras(write(tmp_path / "a.json", labelled)))
    assert [(frames[0].label, len(frames)) for frames in found] == [("cam9", 4), ("cam10", 4)]  # natural order
    times = [
        {"file_path": f"{v}/{t}", "transform_matrix": pose(v), "time": t, "fl_x": 9} for t in (0, 1) for v in (1, 0)
    ]
    assert [len(frames) for frames in stations(read_cameras(write(tmp_path / "a.json", times)))] == [2, 2]
    moving = [{"camera_label": "phone", "file_path": f"{v}", "transform_matrix": pose(v), "fl_x": 9} for v in (1, 0)]
    assert [frames[0].path for frames in stations(read_cameras(write(tmp_path / "a.json", moving)))] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("./train/r_000", ("train", "r_000")),
        ("images\\a.JPG", ("images", "a")),
        ("r_0.5", ("r_0.5",)),
        ("cam00.mp4", ("cam00",)),
        ("", ()),
    ],
)
def test_names_are_compared_without_the_suffix_of_a_picture(name, parts):
    assert name_parts(name) == parts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no list of frames"),
        ('{"frames": []}', "no list of frames"),
        ('{"frames": [{"fl_x": 9}, {"fl_x": 9}]}', "lacks 'transform_matrix'"),
        (json.dumps({"frames": [{"transform_matrix": [[1]], "fl_x": 9}] * 2}), r"transform_matrix is \[1, 1\]"),
        (json.dumps({"frames": [{"transform_matrix": pose(0)}] * 2}), "lacks 'camera_angle_x'"),
        (json.dumps({"frames": [{"transform_matrix": pose(0), "fl_x": "wide"}] * 2}), "could not convert"),
        (json.dumps({"frames": [{"transform_matrix": pose(np.nan), "fl_x": 9}] * 2}), "not finite"),
        (json.dumps({"frames": [{"transform_matrix": (2 * np.eye(4)).tolist(), "fl_x": 9}] * 2}), "no rotation"),
        (json.dumps({"frames": [{"transform_matrix": np.transpose(pose(3)).tolist(), "fl_x": 9}]}), "transpose it"),
        (json.dumps({"camera_model": "EQUIRECTANGULAR", "frames": [{"transform_matrix": pose(0)}]}), "EQUIRECTANGULAR"),
        (json.dumps({"frames": [{"transform_matrix": pose(0), "fl_x": 9, "camera_model": "FOV"}]}), "model FOV; known"),
        (
            json.dumps({"frames": [{"transform_matrix": pose(0), "fl_x": 9, "is_fisheye": True, "p1": 1}]}),
            r"besides k1",
        ),
        (json.dumps({"frames": [{"transform_matrix": pose(0), "camera_angle_x": 4}]}), "not between 0 and pi"),
    ],
)
def test_what_is_no_camera_file_says_what_was_expected(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_cameras(str(tmp_path / "a.json"))


@pytest.mark.parametrize(("axes", "poses"), [("opencv", "c2w"), ("opencv", "w2c"), ("opengl", "w2c")])
def test_a_file_in_another_convention_is_told_apart(axes, poses):
    """Cameras around (1, 2, 0.5) at 3; each wrong reading of the same matrices has a right one, where that point is found."""
    around = pinhole.orbit_arc(np.array([1, 2, 0.5]), 3, np.linspace(0, 80, 5), 20).astype(np.float64)
    assert np.allclose(readings(around)["opengl", "c2w"], [1, 2, 0.5], atol=1e-5)
    written = around if axes == "opencv" else pinhole.opengl_from_opencv(around)
    written = np.linalg.inv(written) if poses == "w2c" else written
    found = readings(pinhole.opencv_from_opengl(written))
    assert ("opengl", "c2w") not in found and np.allclose(found[axes, poses], [1, 2, 0.5], atol=1e-5)
