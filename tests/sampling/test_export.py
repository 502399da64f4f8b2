"""Exports, read back by the rules of the tools that take them, written down from their sources, without their code.

Every rule gives the pixel of a world point, counted from the outer corner of the top left one, for each picture; the right
value is the bundled grid's own: K and the OpenCV pose, in float64. 0.1 px is asked; what is left is float32 of the poses.
"""

import dataclasses
import json
import struct

import numpy as np
import pytest
from PIL import Image

from fourreal import cli
from fourreal.media.colmap import quaternion
from fourreal.sampling import export
from fourreal.sampling.inputs import GRIDS, load_grid
from fourreal.sampling.results import GridResult, transforms, write_result

FRAMES, K, C2W = load_grid(GRIDS / "miner.npz")
VIEWS, TIMES, HEIGHT, WIDTH, _ = FRAMES.shape
POINTS = np.random.default_rng(0).normal(scale=0.2, size=(20, 3))


def right_pixels(view):
    """[20, 2] of the points, from the grid's K and c2w."""
    in_camera = np.linalg.inv(C2W[view].astype(float)) @ np.vstack([POINTS.T, np.ones(20)])
    assert (in_camera[2] > 0).all()
    flat = K[view].astype(float) @ in_camera[:3]
    return (flat[:2] / flat[2]).T


def opengl_pixels(pose, fx, fy, cx, cy):
    """Camera to world with x right, y up, looking along -z."""
    x, y, z, _ = np.linalg.inv(np.array(pose)) @ np.vstack([POINTS.T, np.ones(20)])
    return np.stack([cx + fx * x / -z, cy - fy * y / -z], -1)


def opencv_pixels(rotation, shift, fx, fy, cx, cy):
    """World to camera with x right, y down, looking along z."""
    x, y, z = rotation @ POINTS.T + np.reshape(shift, (3, 1))
    return np.stack([cx + fx * x / z, cy + fy * y / z], -1)


def close(pixels, view):
    assert np.abs(pixels - right_pixels(view)).max() < 0.1


def cell_of(path, channels=3):
    """(view, time) of a picture by what it shows."""
    picture = np.asarray(Image.open(path))
    assert picture.shape == (HEIGHT, WIDTH, channels)
    (found,) = np.argwhere((picture[..., :3] == FRAMES).all((2, 3, 4)))[:1]
    return tuple(found.tolist())


@pytest.fixture
def result():
    given = np.zeros((VIEWS, TIMES), bool)
    given[0] = True
    return GridResult("unit", FRAMES, given, K=K, c2w=C2W, fps=4.0, focus=2.0, cameras="asked for by --trajectory arc")


def save(folder, result):
    """What export reads of a sampled grid's folder."""
    folder.mkdir()
    arrays = {name: array for name, array in (("K", result.K), ("c2w", result.c2w)) if array is not None}
    np.savez(folder / "grid.npz", frames=result.sampled, given=result.given, **arrays)
    (folder / "transforms.json").write_text(json.dumps(transforms(result)))
    return folder


@pytest.fixture
def folder(result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save(tmp_path / "unit", result)


def run(*words):
    try:
        cli.main(["export", *map(str, words)])
    except SystemExit as error:
        return error.code
    return 0


def fails(capsys, *words):
    assert run(*words) == 2
    return capsys.readouterr().err


def test_nerfstudio_finds_every_point_at_every_time(folder, tmp_path):
    """`file_path` beside the file that --data names; fl_x ... cy of each frame; `transform_matrix` OpenGL; `time`."""
    assert run(folder, "--to", "nerfstudio", "--out", "ns") == 0
    content = json.loads((tmp_path / "ns/transforms.json").read_text())
    assert len(content["frames"]) == VIEWS * TIMES
    assert content["fps"] == 4 and content["duration"] == (TIMES - 1) / 4 and content["cameras"].startswith("asked for")
    for frame in content["frames"]:
        view, time = cell_of(tmp_path / "ns" / frame["file_path"])
        assert frame["time"] == pytest.approx(time / (TIMES - 1)) and (frame["w"], frame["h"]) == (WIDTH, HEIGHT)
        close(opengl_pixels(frame["transform_matrix"], *(frame[key] for key in ("fl_x", "fl_y", "cx", "cy"))), view)


def test_nerfstudio_gets_each_moment_as_a_file_of_its_own(folder, tmp_path):
    assert run(folder, "--to", "nerfstudio") == 0
    for time in range(TIMES):
        content = json.loads((tmp_path / f"unit-nerfstudio/transforms_{time:06d}.json").read_text())
        cells = [cell_of(tmp_path / "unit-nerfstudio" / frame["file_path"]) for frame in content["frames"]]
        assert cells == [(view, time) for view in range(VIEWS)]


def test_dnerf_finds_every_point_and_holds_a_view_out(folder, tmp_path, capsys):
    """focal = W / 2 / tan(camera_angle_x / 2) for both axes, the principal point in the middle; a picture is at `file_path`
    + ".png" with four channels; each file's first frame is at time 0 and its times are those of all others."""
    assert run(folder, "--to", "dnerf", "--out", "dn") == 0
    assert f"view {VIEWS // 2} held out" in capsys.readouterr().out
    seen = {}
    for split in ("train", "val", "test"):
        content = json.loads((tmp_path / f"dn/transforms_{split}.json").read_text())
        focal = WIDTH / 2 / np.tan(content["camera_angle_x"] / 2)
        assert content["frames"][0]["time"] == 0
        for frame in content["frames"]:
            view, time = cell_of(tmp_path / "dn" / f"{frame['file_path'].replace('./', '')}.png", channels=4)
            assert frame["time"] == pytest.approx(time / (TIMES - 1))
            close(opengl_pixels(frame["transform_matrix"], focal, focal, WIDTH / 2, HEIGHT / 2), view)
            seen.setdefault(split, []).append((view, time))
    every = set(np.ndindex(VIEWS, TIMES))
    assert set(seen["test"]) == set(seen["val"]) == {cell for cell in every if cell[0] == VIEWS // 2}
    assert len(seen["train"]) == len(set(seen["train"])) and set(seen["train"]) == every - set(seen["test"])


def test_gaussian_splatting_finds_every_point_in_the_same_files(folder, tmp_path):
    """It negates columns 1 and 2 of the pose, inverts it, and projects by the tangents of half the fields of view; that of
    the height follows from the focal length of the width."""
    assert run(folder, "--to", "dnerf", "--held-out", 0, 1, "--out", "dn") == 0
    content = json.loads((tmp_path / "dn/transforms_train.json").read_text())
    assert {cell_of(tmp_path / "dn" / f"{frame['file_path']}.png", 4)[0] for frame in content["frames"]} == set(
        range(2, VIEWS)
    )
    across = np.tan(content["camera_angle_x"] / 2)
    down = across * HEIGHT / WIDTH
    for frame in content["frames"]:
        pose = np.array(frame["transform_matrix"])
        pose[:3, 1:3] *= -1
        x, y, z, _ = np.linalg.inv(pose) @ np.vstack([POINTS.T, np.ones(20)])
        pixels = np.stack([(x / z / across + 1) * WIDTH / 2, (y / z / down + 1) * HEIGHT / 2], -1)
        close(pixels, cell_of(tmp_path / "dn" / f"{frame['file_path']}.png", 4)[0])


def rotation_of(w, x, y, z):
    """Of a unit quaternion."""
    assert w * w + x * x + y * y + z * z == pytest.approx(1, abs=1e-12)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def read_text(model):
    """Lines but comments; an image has two, of which the second lists its points. {name: (quaternion, shift, camera)}."""
    lines = {name: (model / f"{name}.txt").read_text().split("\n") for name in ("cameras", "images", "points3D")}
    cameras = {}
    for line in filter(None, lines["cameras"]):
        number, kind, width, height, *numbers = line.split()
        assert (kind, int(width), int(height)) == ("PINHOLE", WIDTH, HEIGHT)
        cameras[number] = [float(value) for value in numbers]
    images = {}
    for line, points in zip(lines["images"][::2], lines["images"][1::2], strict=False):
        _, *pose, camera, name = line.split()
        assert points == ""
        images[name] = ([float(value) for value in pose[:4]], [float(value) for value in pose[4:]], cameras[camera])
    assert not any(lines["points3D"])
    return images


def read_binary(model):
    """Little-endian, unpadded: a uint64 count; a camera is int32 id, int32 model, uint64 width and height, doubles; an image
    int32 id, 4 + 3 doubles, int32 camera, its name up to a zero byte, uint64 points."""
    data = (model / "cameras.bin").read_bytes()
    (count,), at, cameras = struct.unpack_from("<Q", data), 8, {}
    for _ in range(count):
        number, kind, width, height, *numbers = struct.unpack_from("<iiQQ4d", data, at)
        assert (kind, width, height) == (1, WIDTH, HEIGHT)
        cameras[number], at = numbers, at + 56
    assert at == len(data)
    data = (model / "images.bin").read_bytes()
    (count,), at, images = struct.unpack_from("<Q", data), 8, {}
    for _ in range(count):
        _, *pose, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        assert struct.unpack_from("<Q", data, end + 1) == (0,)
        images[data[at + 64 : end].decode()], at = (pose[:4], pose[4:], cameras[camera]), end + 9
    assert at == len(data) and (model / "points3D.bin").read_bytes() == bytes(8)
    return images


@pytest.mark.parametrize("read", [read_text, read_binary])
def test_colmap_finds_every_point_at_every_moment(folder, tmp_path, read):
    assert run(folder, "--to", "colmap", "--out", "cm") == 0
    assert sorted(path.name for path in (tmp_path / "cm").iterdir() if path.is_dir()) == [
        f"{t:06d}" for t in range(TIMES)
    ]
    for time in range(TIMES):
        images = read(tmp_path / f"cm/{time:06d}/sparse/0")
        assert len(images) == VIEWS
        for name, (turn, shift, lens) in images.items():
            view, shown = cell_of(tmp_path / f"cm/{time:06d}/images/{name}")
            assert shown == time
            close(opencv_pixels(rotation_of(*turn), shift, *lens), view)


def test_quaternions_of_half_turns_are_right():
    for axis in np.eye(3):
        turn = quaternion(2 * np.outer(axis, axis) - np.eye(3))
        np.testing.assert_allclose(np.abs(turn), [0, *axis], atol=1e-12)
    np.testing.assert_allclose(quaternion(np.eye(3)), [1, 0, 0, 0], atol=1e-12)


def test_a_folder_that_sample_wrote_comes_back(result, tmp_path):
    small = dataclasses.replace(result, sampled=FRAMES[:2, :2], given=result.given[:2, :2], K=K[:2], c2w=C2W[:2])
    write_result(tmp_path / "out", small)
    again = export.read_result(tmp_path / "out")
    for name in ("sampled", "given", "K", "c2w"):
        np.testing.assert_array_equal(getattr(again, name), getattr(small, name))
    assert (again.fps, again.focus, again.cameras) == (small.fps, small.focus, small.cameras)


def test_unknown_cameras_are_not_exported(result, tmp_path, capsys):
    plain = save(tmp_path / "plain", dataclasses.replace(result, K=None, c2w=None))
    content = json.loads((plain / "transforms.json").read_text())
    assert content["cameras"].startswith("unknown") and not any(
        "transform_matrix" in frame for frame in content["frames"]
    )
    for form in ("nerfstudio", "dnerf", "colmap"):
        line = fails(capsys, plain, "--to", form)
        assert "cameras are unknown; sample it with --cameras or --trajectory" in line
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize(
    ("view", "entry", "change"),
    [(slice(None), (0, 0), 2.0), (1, (1, 1), 2.0), (slice(None), (0, 2), 1.0), (0, (1, 2), -0.5)],
)
def test_cameras_that_dnerf_cannot_say_are_refused_there_and_exact_elsewhere(
    result, tmp_path, capsys, view, entry, change, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = K.copy()
    other[(view, *entry)] += change  # pixels
    folder = save(tmp_path / "unit", dataclasses.replace(result, K=other))
    assert "px here; export --to nerfstudio" in fails(capsys, folder, "--to", "dnerf")
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]
    assert run(folder, "--to", "colmap") == 0
    stored = read_text(tmp_path / "unit-colmap/000000/sparse/0")["cam01.png"][2]
    np.testing.assert_allclose(stored, other[1][[0, 1, 0, 1], [0, 1, 2, 2]])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "dnerf", "--held-out", VIEWS), f"expected some of views 0 to {VIEWS - 1}"),
        (("--to", "dnerf", "--held-out", *range(VIEWS)), "at least one left to train"),
        (("--to", "colmap", "--held-out", 1), "--held-out is for --to dnerf"),
        (("--to", "ply"), "'ply'"),
        (("--to", "colmap", "--out", "unit"), "--out unit exists; add --overwrite"),
        (("--to", "colmap", "--out", "unit", "--overwrite"), "not written by fourreal"),
    ],
)
def test_what_cannot_be_exported_is_one_line(folder, capsys, words, says):
    line = fails(capsys, "unit", *words)
    assert says in line and line.count("\n") == 1


def test_the_folder_may_be_the_one_where_one_stands(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert run(".", "--to", "nerfstudio") == 0 and (tmp_path / "unit-nerfstudio/transforms.json").is_file()


@pytest.mark.parametrize("spoil", ["given", "facts", "frames", "none", "c2w"])
def test_a_damaged_result_is_one_line(folder, capsys, spoil):
    arrays = dict(np.load(folder / "grid.npz"))
    if spoil == "facts":
        (folder / "transforms.json").write_text("[1]")
    elif spoil == "none":
        (folder / "grid.npz").unlink()
    elif spoil == "c2w":
        np.savez(folder / "grid.npz", **arrays | {"c2w": arrays["c2w"] * np.float32([-1, 1, 1, 1])})  # mirrored
    else:
        arrays[spoil] = arrays[spoil][:1].astype(np.float32)
        np.savez(folder / "grid.npz", **arrays)
    line = fails(capsys, "unit", "--to", "nerfstudio")
    assert "unit" in line and line.count("\n") == 1


@pytest.mark.parametrize("form", ["nerfstudio", "dnerf", "colmap"])
def test_an_interrupted_export_leaves_nothing_and_a_second_one_replaces_the_first(folder, tmp_path, monkeypatch, form):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(export, f"write_{'folder' if form == 'colmap' else 'pictures'}", stop)
        assert run("unit", "--to", form) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]
    assert run("unit", "--to", form) == 0 and run("unit", "--to", form) == 2
    assert run("unit", "--to", form, "--overwrite") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unit", f"unit-{form}"]
