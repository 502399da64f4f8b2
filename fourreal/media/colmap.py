"""COLMAP's sparse models, a folder of cameras.txt and images.txt, from and to the form of nerfstudio's transforms.json.

images.txt holds world to camera in OpenCV's axes: a quaternion (w first) and a translation. A binary model is read through the
package pycolmap, which writes it as text.
"""

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fourreal.errors import UserError
from fourreal.geometry.pinhole import opencv_from_opengl, opengl_from_opencv

# of each camera model the parameters in COLMAP's order, by the names of transforms.json; f is both focal lengths
MODELS = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fl_x fl_y cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fl_x fl_y cx cy k1 k2 p1 p2",
    "FULL_OPENCV": "fl_x fl_y cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "OPENCV_FISHEYE": "fl_x fl_y cx cy k1 k2 k3 k4",
}
NUMBERS = {"PINHOLE": 1, "OPENCV": 4, "OPENCV_FISHEYE": 5, "FULL_OPENCV": 6}  # of those that are written, in binary
FILES = ("cameras.txt", "images.txt", "points3D.txt")  # as text
EXPECTED = "expected COLMAP's cameras.txt and images.txt (or .bin), as in sparse/0"


def read_folder(folder: Path) -> dict[str, Any]:
    """A sparse model as the content of a transforms.json. Raises UserError for a folder that holds none."""
    if not (folder / "images.txt").is_file() and (folder / "images.bin").is_file():
        with tempfile.TemporaryDirectory() as text:
            _as_text(folder, text)
            return read_folder(Path(text))
    if not all((folder / name).is_file() for name in ("cameras.txt", "images.txt")):
        raise UserError(f"{folder}: no sparse model; {EXPECTED}")
    try:
        cameras = dict(map(_camera, _lines(folder / "cameras.txt")))
        images = [line.split(maxsplit=9) for line in _lines(folder / "images.txt", comments=False)[::2]]
        frames = [_frame(words, cameras[words[8]]) for words in images if words]
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{folder}: damaged ({type(error).__name__}: {error}); {EXPECTED}") from None
    return {"frames": sorted(frames, key=lambda frame: frame["file_path"])}


def write_folder(folder: Path, frames: list[dict[str, Any]], binary: bool = False) -> None:
    """Frames of a transforms.json as text, in a new folder: one camera a frame, and no points; `binary`: in binary, too."""
    if not all(frame["file_path"] for frame in frames):
        raise UserError("COLMAP knows cameras by their pictures' names: expected a file_path for every frame")
    folder.mkdir()
    cameras, images = [], []
    packed = {"cameras": [struct.pack("<Q", len(frames))], "images": [struct.pack("<Q", len(frames))]}
    for number, frame in enumerate(frames, 1):
        model = _model_of(frame)
        values = [float(frame["fl_x"] if name == "f" else frame.get(name, 0.0)) for name in MODELS[model].split()]
        cameras.append(f"{number} {model} {frame['w']} {frame['h']} {' '.join(map(repr, values))}")
        c2w = opencv_from_opengl(np.array(frame["transform_matrix"], np.float64))
        left, _, right = np.linalg.svd(c2w[:3, :3])
        turn = (left @ right).T  # world to camera, free of what rounding does to a rotation
        pose = [*quaternion(turn).tolist(), *(-turn @ c2w[:3, 3]).tolist()]
        images += [f"{number} {' '.join(map(repr, pose))} {number} {frame['file_path']}", ""]
        lens = struct.pack(f"<iiQQ{len(values)}d", number, NUMBERS[model], frame["w"], frame["h"], *values)
        packed["cameras"].append(lens)
        name = frame["file_path"].encode()
        packed["images"].append(struct.pack("<i7di", number, *pose, number) + name + struct.pack("<xQ", 0))
    for name, lines in zip(FILES, (cameras, images, []), strict=True):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if binary:
        for name, parts in (packed | {"points3D": [struct.pack("<Q", 0)]}).items():
            (folder / f"{name}.bin").write_bytes(b"".join(parts))


def rotation(quaternion: ndarray) -> Float[ndarray, "3 3"]:
    """The rotation of a quaternion (w, x, y, z) of any length."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion(rotation: Float[ndarray, "3 3"]) -> Float[ndarray, "4"]:
    """(w, x, y, z) of a rotation: the eigenvector of the largest eigenvalue of Bar-Itzhack's matrix, w not below 0."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    upper = [
        [a + e + i, 0, 0, 0],
        [h - f, a - e - i, 0, 0],
        [c - g, b + d, e - a - i, 0],
        [d - b, c + g, f + h, i - a - e],
    ]
    found = np.linalg.eigh(np.array(upper), UPLO="L")[1][:, -1]
    return found if found[0] >= 0 else -found


def _as_text(folder: Path, out: str) -> None:
    """A binary model written as text."""
    try:
        import pycolmap
    except ModuleNotFoundError:
        raise UserError(
            f"{folder}: a binary model, for which pycolmap is missing: pip install -e '.[colmap]', or write it as text with "
            "colmap model_converter --output_type TXT"
        ) from None
    try:
        pycolmap.Reconstruction(str(folder)).write_text(out)
    except Exception as error:  # C++ raises many kinds
        raise UserError(f"{folder}: damaged ({error}); {EXPECTED}") from None


def _lines(file: Path, comments: bool = True) -> list[str]:
    """The lines but comments. Of images.txt every second one, which may be empty, is of points."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if not line.startswith("#") and (line or not comments)]


def _camera(line: str) -> tuple[str, dict[str, Any]]:
    """CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] as keys of transforms.json; those of an unknown model stay unread."""
    number, model, width, height, *values = line.split()
    names = MODELS.get(model, "").split()
    known = dict(zip(names, map(float, values), strict=bool(names)))
    if "f" in known:
        known |= dict.fromkeys(("fl_x", "fl_y"), known.pop("f"))
    return number, {"camera_model": model, "w": int(width), "h": int(height), **known}


def _frame(words: list[str], camera: dict[str, Any]) -> dict[str, Any]:
    """IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME."""
    numbers = np.array(words[1:8], np.float64)
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = rotation(numbers[:4]), numbers[4:]
    return {"file_path": words[9], "transform_matrix": opengl_from_opencv(np.linalg.inv(w2c)).tolist(), **camera}


def _model_of(frame: dict[str, Any]) -> str:
    """The COLMAP model that holds a frame's coefficients."""
    if "FISHEYE" in frame.get("camera_model", ""):
        return "OPENCV_FISHEYE"
    if any(frame.get(key) for key in ("k3", "k4", "k5", "k6")):
        return "FULL_OPENCV"
    return "OPENCV" if any(frame.get(key) for key in ("k1", "k2", "p1", "p2")) else "PINHOLE"
