"""Cameras from a `transforms.json` of nerfstudio or Blender, brought to the size of the model's pictures."""

import json
import math
from pathlib import Path

import numpy as np

from fourreal.errors import MissingFile, UserError
from fourreal.geometry.pinhole import opencv_from_opengl
from fourreal.geometry.rays import check_cameras
from fourreal.grid import even_cut
from fourreal.media.clips import natural_order
from fourreal.media.pictures import Crop, fit_intrinsics
from fourreal.scene import Cameras

DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def read_transforms(path: str, views: int, size: tuple[int, int], crop: Crop = "center") -> tuple[Cameras, str]:
    """One camera a view from nerfstudio's or Blender's `transforms.json`, and a line that says which.

    Frames with equal `camera_label` are one camera, the first of them counts; else every frame is one, in natural order of
    `file_path`. Of more cameras than `views`, an even cut. K is brought from the file's picture size to `size` (height,
    width) as `crop` does with pictures. Poses are OpenGL's camera to world, in any unit. Raises FileNotFoundError, or
    ValueError for what is not in this form.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFile(f"--cameras {path}: there is no such file; expected nerfstudio's transforms.json, or none")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"--cameras {path}: not JSON ({error}); expected nerfstudio's transforms.json") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"--cameras {path}: no list of frames; expected nerfstudio's transforms.json")
    if not all("camera_label" in frame for frame in frames):
        frames = sorted(frames, key=lambda frame: natural_order(Path(str(frame.get("file_path", "")))))
    cameras = {}
    for number, frame in enumerate(frames):
        cameras.setdefault(str(frame.get("camera_label", number)), frame)
    if len(cameras) < views:
        raise UserError(f"--cameras {path}: {len(cameras)} cameras; the checkpoint's grid needs {views}, one a view")
    if "FISHEYE" in str(content.get("camera_model", "")).upper() or content.get("is_fisheye"):
        raise UserError(f"--cameras {path}: fisheye cameras; expected pinhole ones, of undistorted pictures")
    names = [list(cameras)[place] for place in even_cut(len(cameras), views)]
    K, c2w = zip(*(_camera(content, cameras[name], path, size, crop) for name in names), strict=True)
    try:
        focus = None if content.get("focus") is None else np.float32(content["focus"])
        found = Cameras(np.stack(K), opencv_from_opengl(np.stack(c2w)), focus)
        check_cameras(found, views)
    except (TypeError, ValueError) as error:
        raise UserError(f"--cameras {path}: {error}") from None
    shown = [str(cameras[name].get("camera_label", cameras[name].get("file_path", name))) for name in names]
    bent = any(frame.get(key) for frame in (content, *frames) for key in DISTORTION)
    return found, f"{path}: cameras of {', '.join(shown)}" + ("; their lens distortion is ignored" if bent else "")


def _camera(content: dict, frame: dict, path: str, size: tuple[int, int], crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """K for pictures of `size` and the OpenGL c2w of one frame; what the frame lacks, the whole file says."""
    known = {**content, **frame}
    try:
        with np.errstate(over="ignore"):  # what is too large is not finite then, and said to be
            c2w = np.array(known["transform_matrix"], np.float32)
        if c2w.shape not in ((3, 4), (4, 4)):
            raise UserError(f"transform_matrix is {list(c2w.shape)}")
        c2w = np.concatenate([c2w[:3], [[0, 0, 0, 1]]]).astype(np.float32)
        width, height = (float(known.get(key, side)) for key, side in (("w", size[1]), ("h", size[0])))
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise UserError(f"w, h are {width:g}, {height:g}")
        fl_x = float(known["fl_x"]) if "fl_x" in known else _focal(width, known["camera_angle_x"])
        fl_y = _focal(height, known["camera_angle_y"]) if "camera_angle_y" in known and "fl_x" not in known else fl_x
        fl_y = float(known.get("fl_y", fl_y))
        cx, cy = float(known.get("cx", width / 2)), float(known.get("cy", height / 2))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"--cameras {path}: a frame {what}; expected transform_matrix 4x4 and fl_x with w, h (or camera_angle_x)"
        ) from None
    with np.errstate(over="ignore"):
        K = np.array([[[fl_x, 0, cx], [0, fl_y, cy], [0, 0, 1]]], np.float32)
        return fit_intrinsics(K, (height, width), size, crop)[0], c2w


def _focal(side: float, angle: float) -> float:
    """The focal length in pixels at which a picture's side spans an angle, in radians."""
    return side / (2 * math.tan(float(angle) / 2))
