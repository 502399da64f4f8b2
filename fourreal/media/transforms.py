"""Camera files as lists of cameras: a `transforms.json` of nerfstudio, instant-ngp or Blender (D-NeRF), or COLMAP's folder.

A frame's own keys win over those of the whole file. Poses are OpenGL's camera to world; ours are OpenCV's, in float64 as the
file has them.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from fourreal.errors import MissingFile, UserError
from fourreal.geometry.pinhole import opencv_from_opengl
from fourreal.media import colmap, pictures
from fourreal.media.lens import Lens

EXPECTED = "expected nerfstudio's transforms.json, or a folder of COLMAP's"
PERSPECTIVE = ("", "PERSPECTIVE", "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
OF_FISHEYE = ("k1", "k2", "k3", "k4")
KEYS = (*COEFFICIENTS, "fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y", "time")


@dataclass(frozen=True)
class FileCamera:
    """One frame of a camera file."""

    path: str
    """`file_path`, the picture's name; empty where there is none"""
    c2w: Float[np.ndarray, "4 4"]
    """OpenCV, in the file's world and unit"""
    focal: tuple[float, float] | None
    """in pixels across and down, or None: from `angles`"""
    angles: tuple[float, float | None] | None = None
    """fields of view across and down, in radians; None down: square pixels"""
    center: tuple[float | None, float | None] = (None, None)
    """the principal point; None: the middle"""
    size: tuple[int, int] | None = None
    """height and width of the picture that the numbers are about; None: the file does not say"""
    lens: Lens = Lens()
    label: str | None = None
    time: float | None = None

    @property
    def name(self) -> str:
        return self.label or self.path or "without a name"

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Those of its path, as names are compared."""
        return name_parts(self.path)

    def intrinsics(self, size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
        """K in pixels of the same picture at `size` (height, width). Raises UserError for one of another aspect."""
        height, width = size
        old_height, old_width = self.size or size
        if min(abs(width - old_width * height / old_height), abs(height - old_height * width / old_width)) > 1:
            raise UserError(
                f"camera {self.name} is of pictures of {old_width:g}x{old_height:g}, and this one has {width}x{height}: "
                "expected the same picture, or one scaled as a whole (not cut or turned)"
            )
        if self.focal is None:
            across, down = self.angles
            fl_x = old_width / (2 * math.tan(across / 2))
            fl_y = fl_x if down is None else old_height / (2 * math.tan(down / 2))
        else:
            fl_x, fl_y = self.focal
        cx, cy = (side / 2 if at is None else at for side, at in zip((old_width, old_height), self.center, strict=True))
        scale = np.diag([width / old_width, height / old_height, 1.0])
        return scale @ np.array([[fl_x, 0, cx], [0, fl_y, cy], [0, 0, 1]])


@dataclass(frozen=True)
class CameraFile:
    """What a camera file says. `focus`: see `scene.Cameras`."""

    path: str
    frames: tuple[FileCamera, ...]
    focus: float | None = None


def read_cameras(path: str) -> CameraFile:
    """Reads a camera file. Raises MissingFile, or UserError for what is not in one of the forms or no camera we know."""
    file = Path(path).expanduser()
    if file.is_dir():
        content, folder = colmap.read_folder(file), file
    elif not file.is_file():
        raise MissingFile(f"{path}: there is no such file; {EXPECTED}")
    else:
        try:
            content, folder = json.loads(file.read_text(encoding="utf-8")), file.parent
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}); {EXPECTED}") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path}: no list of frames; {EXPECTED}")
    try:
        focus = None if content.get("focus") is None else float(content["focus"])
    except (TypeError, ValueError):
        raise UserError(f"{path}: focus is {content['focus']!r}; expected a distance above 0, or none") from None
    if focus is not None and not 0 < focus < math.inf:
        raise UserError(f"{path}: focus is {focus}; expected a distance above 0, or none")
    top = {key: value for key, value in content.items() if key != "frames"}
    return CameraFile(path, tuple(_camera(top, frame, path, folder) for frame in frames), focus)


def _camera(top: dict, frame: dict, path: str, folder: Path) -> FileCamera:
    """One frame; what it lacks, the whole file says."""
    known, name = top | frame, str(frame.get("file_path", ""))
    try:
        c2w = opencv_from_opengl(_pose(known["transform_matrix"]))
        numbers = {key: float(known[key]) for key in KEYS if known.get(key) is not None}
        if bad := [f"{key} is {value}" for key, value in numbers.items() if not math.isfinite(value)]:
            raise UserError(bad[0])
        size = (numbers["h"], numbers["w"]) if {"h", "w"} <= numbers.keys() else None
        if size and min(size) < 1:
            raise UserError(f"w, h are {size[1]:g}, {size[0]:g}")
        lens = _lens(known, numbers)
        focal, angles = _field(frame if {"fl_x", "camera_angle_x"} & frame.keys() else top)
        return FileCamera(
            name,
            c2w,
            focal,
            angles,
            (numbers.get("cx"), numbers.get("cy")),
            size or picture_size(folder, name),
            lens,
            None if known.get("camera_label") in (None, "") else str(known["camera_label"]),
            numbers.get("time"),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path}: a frame{' ' * bool(name)}{name[-60:]} {what}; "
            "expected transform_matrix 4x4 and fl_x with w, h (or camera_angle_x)"
        ) from None


def _pose(written: Any) -> np.ndarray:
    """A rotation and a place, 4x4."""
    matrix = np.array(written, np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise UserError(f"transform_matrix is {list(matrix.shape)}")
    if not np.abs(matrix).max() < 1e30:  # float32 ends at 3e38
        raise UserError("transform_matrix is not finite numbers")
    rotation = matrix[:, :3][:3]
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not off <= 1e-3 or np.linalg.det(rotation) < 0:
        raise UserError("transform_matrix holds no rotation (columns of length 1, right-handed)")
    if matrix.shape[0] == 4 and not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        raise UserError(f"transform_matrix ends in the row {matrix[3].tolist()}, not 0 0 0 1: transpose it")
    return np.concatenate([matrix[:3], [[0, 0, 0, 1]]])


def _field(layer: dict) -> tuple[tuple[float, float] | None, tuple[float, float | None] | None]:
    """Focal lengths, or angles, of the frame or of the whole file: never one of each."""
    if "fl_x" in layer:
        focal = float(layer["fl_x"]), float(layer.get("fl_y", layer["fl_x"]))
        if not all(0 < length < math.inf for length in focal):
            raise UserError(f"fl_x, fl_y are {focal[0]:g}, {focal[1]:g}")
        return focal, None
    down = layer.get("camera_angle_y")
    angles = float(layer["camera_angle_x"]), None if down is None else float(down)
    for name, angle in zip(("camera_angle_x", "camera_angle_y"), angles, strict=True):
        if angle is not None and not 0 < angle < math.pi:
            raise UserError(f"{name} is {angle:g}, not between 0 and pi")
    return None, angles


def _lens(known: dict, numbers: dict[str, float]) -> Lens:
    """The lens of a frame. Raises UserError for a camera model that is none of ours."""
    model = str(known.get("camera_model") or "").upper()
    if model not in (*PERSPECTIVE, *FISHEYE):
        raise UserError(
            f"has the camera model {model}; known are {', '.join((*PERSPECTIVE[1:], *FISHEYE))}: "
            "make pinhole pictures of it first"
        )
    fisheye = model in FISHEYE or bool(known.get("is_fisheye"))
    if fisheye and any(numbers.get(key) for key in COEFFICIENTS if key not in OF_FISHEYE):
        raise UserError("is a fisheye with coefficients besides k1..k4")
    names = OF_FISHEYE if fisheye else COEFFICIENTS
    found = tuple(numbers.get(key, 0.0) for key in names)
    return Lens(fisheye, found if any(found) else ())


def picture_size(folder: Path, name: str) -> tuple[int, int] | None:
    """Height and width of the picture that a frame names, None where it is not there; Blender leaves out the `.png`."""
    if not name:
        return None
    for suffix in ("", ".png", ".jpg", ".jpeg"):
        file = folder / (name + suffix)
        try:
            if file.is_file():
                return pictures.picture_size(file)
        except Exception as error:  # damaged pictures make Pillow raise anything
            raise UserError(f"names a picture that cannot be read ({error})") from None
    return None


def name_parts(name: str) -> tuple[str, ...]:
    """A path without the suffix of a picture, as names are compared: ("images", "0001")."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "."]
    stem, dot, suffix = parts[-1].rpartition(".") if parts else ("", "", "")
    known = stem and suffix.isalnum() and not suffix.isdecimal()
    return (*parts[:-1], stem) if known and dot else tuple(parts)
