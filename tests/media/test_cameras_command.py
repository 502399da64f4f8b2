"""The verbs `cameras ...`, against matrices written by hand and pictures looked at pixel by pixel."""

import json

import numpy as np
import pytest
from PIL import Image

from fourreal import cli
from fourreal.geometry import pinhole
from fourreal.media.frusta import FIRST, OTHERS, SIDE
from fourreal.media.transforms import read_cameras

LENS = {"k1": -0.1, "k2": 0.02, "p1": 0.001, "p2": -0.002}


def around() -> np.ndarray:
    """Cameras around (1, 2, 0.5), OpenCV."""
    return pinhole.orbit_arc(np.array([1, 2, 0.5]), 3, np.linspace(0, 80, 5), 20).astype(np.float64)


def write(path, matrices, **keys):
    frames = [{"file_path": f"images/{n}.png", "transform_matrix": m.tolist()} for n, m in enumerate(matrices)]
    path.write_text(json.dumps({"fl_x": 500, "w": 640, "h": 480, **keys, "frames": frames}))
    return path


def run(capsys, *argv) -> str:
    cli.main(["cameras", *map(str, argv)])
    return capsys.readouterr().out


def fails(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["cameras", *map(str, argv)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


@pytest.mark.parametrize(
    ("flags", "matrices"),
    [
        (("--axes", "opencv"), around()),
        (("--axes", "opencv", "--poses", "w2c"), np.linalg.inv(around())),
        (("--poses", "w2c"), np.linalg.inv(around() * [1, -1, -1, 1])),
        ((), around() * [1, -1, -1, 1]),
    ],
)
def test_other_conventions_are_found_and_mended(tmp_path, capsys, flags, matrices):
    path = write(tmp_path / "a.json", matrices)
    said = run(capsys, "check", path)
    assert "look at one subject, at (1, 2, 0.5)" in said and ("warning" in said) == bool(flags)
    assert all(flag in said for flag in flags)
    run(capsys, "convert", path, tmp_path / "b.json", *flags)
    mended = json.loads((tmp_path / "b.json").read_text())["frames"]
    np.testing.assert_allclose([f["transform_matrix"] for f in mended], around() * [1, -1, -1, 1], atol=1e-6)
    assert "warning" not in run(capsys, "check", tmp_path / "b.json")
    run(capsys, "convert", tmp_path / "b.json", tmp_path / "b.json", "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_cameras_come_back_through_every_form(tmp_path, capsys):
    path = write(tmp_path / "a.json", around() * [1, -1, -1, 1], **LENS, cx=300, fl_y=510)
    run(capsys, "convert", path, tmp_path / "sparse")
    run(capsys, "convert", tmp_path / "sparse", tmp_path / "b.json")
    one, other = read_cameras(str(path)).frames, read_cameras(str(tmp_path / "b.json")).frames
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.c2w, b.c2w, atol=1e-6)  # the file's rotations are such to fp32
        np.testing.assert_allclose(a.intrinsics((480, 640)), b.intrinsics((480, 640)))
        assert a.lens == b.lens and a.path == b.path
    plain = write(tmp_path / "c.json", around() * [1, -1, -1, 1])
    run(capsys, "convert", plain, tmp_path / "d.json", "--to", "blender")
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["camera_angle_x"] == pytest.approx(2 * np.arctan(320 / 500))
    assert content["frames"][3]["file_path"] == "images/3"


def test_colmap_text_is_as_its_manual_says(tmp_path, capsys):
    """OpenGL's identity at (1, 2, 3): world to camera turns by 180 degrees about x, (0, 1, 0, 0), and t = -R o."""
    matrix = np.eye(4)
    matrix[:3, 3] = 1, 2, 3
    run(capsys, "convert", write(tmp_path / "a.json", [matrix]), tmp_path / "sparse")
    (camera,) = (tmp_path / "sparse/cameras.txt").read_text().splitlines()
    assert camera == "1 PINHOLE 640 480 500.0 500.0 320.0 240.0"
    number, *pose, of, name = (tmp_path / "sparse/images.txt").read_text().splitlines()[0].split()
    np.testing.assert_allclose(np.array(pose, float), [0, 1, 0, 0, -1, 2, 3], atol=1e-12)
    assert (number, of, name) == ("1", "1", "images/0.png")


def test_colmap_s_own_reader_sees_points_where_we_do(tmp_path, capsys):
    pycolmap = pytest.importorskip("pycolmap")
    path = write(tmp_path / "a.json", around() * [1, -1, -1, 1], **LENS)
    run(capsys, "convert", path, tmp_path / "sparse")
    model = pycolmap.Reconstruction(str(tmp_path / "sparse"))
    for image in model.images.values():
        frame = next(f for f in read_cameras(str(path)).frames if f.path == image.name)
        point = np.array([1.2, 2.1, 0.4])
        expected = pinhole.project(point[None], frame.intrinsics((480, 640)), frame.c2w)[0][0]
        seen = image.cam_from_world() * point
        camera = model.cameras[image.camera_id]
        np.testing.assert_allclose(camera.calibration_matrix() @ seen / seen[2], [*expected, 1], atol=1e-6)
        assert list(camera.params[4:]) == list(LENS.values())
    (tmp_path / "binary").mkdir()
    model.write_binary(str(tmp_path / "binary"))
    one, other = (read_cameras(str(tmp_path / name)).frames for name in ("sparse", "binary"))
    np.testing.assert_allclose([f.c2w for f in one], [f.c2w for f in other], atol=1e-9)


def middle(picture: np.ndarray, color: tuple, panel: int) -> np.ndarray:
    """The middle of the largest disc of a colour in a panel: where a 5 x 5 box holds nothing else."""
    hits = (picture[:, SIDE * panel : SIDE * (panel + 1)] == color).all(-1)
    boxes = np.lib.stride_tricks.sliding_window_view(hits, (5, 5)).all((2, 3))
    row, column = np.argwhere(boxes).mean(0) + 2
    return np.array([column, row])


def test_plot_shows_cameras_where_they_stand(tmp_path, capsys):
    """Two cameras apart by (2, 1, 0.5), the first in red: their dots are apart by as much in every panel, y and z upward."""
    first, second = (pinhole.look_at(eye, [0, 5, 0]).astype(float) for eye in ([0, 0, 0], [2, 1, 0.5]))
    path = write(tmp_path / "a.json", np.stack([first, second]) * [1, -1, -1, 1])
    run(capsys, "plot", path, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    apart = [middle(picture, OTHERS, panel) - middle(picture, FIRST, panel) for panel in range(3)]
    unit = apart[0][0] / 2
    expected = np.array([[2, -1], [2, -0.5], [1, -0.5]]) * unit
    np.testing.assert_allclose(apart, expected, atol=1.5)  # dots lie on whole pixels


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_plot_and_check_take_any_unit_and_cameras_in_one_place(tmp_path, capsys, scale):
    matrices = around() * [1, -1, -1, 1]
    matrices[:, :3, 3] *= scale
    for n, path in enumerate((write(tmp_path / "a.json", matrices), write(tmp_path / "b.json", matrices[:1]))):
        run(capsys, "plot", path, tmp_path / f"{n}.png")
        assert "unit: " in run(capsys, "check", path)


def test_what_a_form_cannot_hold_and_files_in_the_way_are_said(tmp_path, capsys):
    path = write(tmp_path / "a.json", around() * [1, -1, -1, 1], **LENS)
    assert "no camera for Blender's form" in fails(capsys, "convert", path, tmp_path / "b.json", "--to", "blender")
    assert "a.json exists; add --overwrite" in fails(capsys, "convert", path, path)
    assert "is not replaced" in fails(capsys, "convert", path, tmp_path, "--overwrite")
    assert "expected the name of a picture" in fails(capsys, "plot", path, tmp_path / "a.pdf")
    assert "no sparse model; expected COLMAP's" in fails(capsys, "check", tmp_path)
    unknown = write(tmp_path / "c.json", around() * [1, -1, -1, 1], w=None)
    assert "no w and h" in fails(capsys, "convert", unknown, tmp_path / "d.json")
    (tmp_path / "cameras.txt").write_text("1 FOV 640 480 500 320 240 0.5\n")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n")
    assert "the camera model FOV" in fails(capsys, "check", tmp_path)
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 2 a.png\n\n")
    assert "damaged (KeyError: '2')" in fails(capsys, "check", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "c.json", "cameras.txt", "images.txt"]
