"""The verbs `cameras convert`, `check`, `plot` and `estimate`, on camera files as `sample --cameras` reads them."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from fourreal.errors import FileInTheWay, UserError
from fourreal.geometry.conventions import readings, to_opencv
from fourreal.geometry.pinhole import opengl_from_opencv
from fourreal.geometry.rays import focus_distance, from_first
from fourreal.host.folders import whole_folder
from fourreal.media import colmap
from fourreal.media.clips import choose_frames, open_clip
from fourreal.media.estimate import FEWEST, LensModel, estimate_cameras
from fourreal.media.frusta import frusta_picture
from fourreal.media.pairing import NAMES, WORDS, pose_notes, stations
from fourreal.media.transforms import COEFFICIENTS, OF_FISHEYE, CameraFile, FileCamera, read_cameras

CAMERAS = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CAMERAS")]
OUT = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
CONVENTION = (
    "transform_matrix is camera to world in the OpenGL convention (x right, y up, z backward), in any unit; fl_x, fl_y, cx, cy "
    "are in pixels, with (0, 0) the outer corner of the top left pixel"
)


@dataclass(frozen=True)
class Convert:
    """Writes a camera file in another form, or mends one whose matrices are not OpenGL's camera to world.

    CAMERAS is a transforms.json of nerfstudio, instant-ngp or Blender (D-NeRF), or COLMAP's folder; OUT a .json or a folder.
    """

    cameras: CAMERAS
    """what is read"""
    out: OUT
    """what is written"""
    to: Literal["nerfstudio", "blender", "colmap"] | None = None
    """the form; by default nerfstudio's for a .json, COLMAP's text for a folder"""
    axes: Literal["opengl", "opencv"] = "opengl"
    """axes of the cameras in the json that is read"""
    poses: Literal["c2w", "w2c"] = "c2w"
    """what its matrices are: camera to world or world to camera"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace OUT if it exists"""

    def run(self) -> None:
        """Writes the file. Raises UserError where the form cannot hold the cameras."""
        file, out = read_cameras(self.cameras), Path(self.out).expanduser()
        if (self.axes, self.poses) != ("opengl", "c2w"):
            if Path(self.cameras).expanduser().is_dir():
                raise UserError("--axes and --poses are for a json: COLMAP's folder has its own")
            written = opengl_from_opencv(np.stack([frame.c2w for frame in file.frames]))
            mended = to_opencv(written, self.axes, self.poses)
            frames = (replace(frame, c2w=c2w) for frame, c2w in zip(file.frames, mended, strict=True))
            file = replace(file, frames=tuple(frames))
        form = self.to or ("nerfstudio" if out.suffix.lower() == ".json" else "colmap")
        if out.exists() and not self.overwrite:
            raise FileInTheWay(f"{out} exists; add --overwrite to replace it, or choose another name")
        if out.exists() and out.is_dir() != (form == "colmap"):
            raise FileInTheWay(
                f"{out} is a {'folder' if out.is_dir() else 'file'}, and {form}'s form is not; choose another name"
            )
        if out.is_dir() and any(entry.name not in colmap.FILES for entry in out.iterdir()):
            raise FileInTheWay(f"{out} holds more than COLMAP's text and is not replaced; choose another name")
        content = blender(file) if form == "blender" else nerfstudio(file)
        if form == "colmap":
            with whole_folder(out) as partial:
                colmap.write_folder(partial, content["frames"])
        else:
            _write_json(out, content)
        for note in pose_notes(file, _poses(file)):
            print(note)
        print(f"{out}: {len(file.frames)} frames in {form}'s form")


@dataclass(frozen=True)
class Check:
    """Says what a camera file holds: how many cameras, their lenses, which convention fits, and its unit."""

    cameras: CAMERAS
    """a transforms.json, or COLMAP's folder"""

    def run(self) -> None:
        """Prints the lines."""
        print("\n".join(report(read_cameras(self.cameras))))


@dataclass(frozen=True)
class Plot:
    """Draws the cameras of a file from above, from the front and from the side, as a picture."""

    cameras: CAMERAS
    """a transforms.json, or COLMAP's folder"""
    out: OUT
    """a .png"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace OUT if it exists"""

    def run(self) -> None:
        """Writes the picture."""
        file, out = read_cameras(self.cameras), Path(self.out).expanduser()
        if out.suffix.lower() != ".png":
            raise UserError(f"{out}: expected the name of a picture to write, as cameras.png")
        _check_free(out, self.overwrite)
        cameras = [frames[0] for frames in stations(file)]
        picture = frusta_picture(
            np.stack([camera.c2w for camera in cameras]), [tangents(camera) for camera in cameras], cameras[0].name
        )
        _write_whole(out, lambda partial: picture.save(partial, "PNG"))
        print(f"{out}: {len(cameras)} cameras, {cameras[0].name} in red")


@dataclass(frozen=True)
class Estimate:
    """Finds the cameras of an orbit of your own by COLMAP (package pycolmap), and writes them as nerfstudio's transforms.json.

    ORBIT is what sample --orbit takes: a freeze-time video, or a folder of pictures. The scene stands still in it.
    """

    orbit: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ORBIT")]
    """a video, or a folder or glob of pictures"""
    out: OUT
    """a .json"""
    most: int = 64
    """of a longer clip so many frames, evenly in time"""
    lens: LensModel = "radial"
    """the camera's model: straight lines stay straight, one coefficient, or OpenCV's"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace OUT if it exists"""

    def run(self) -> None:
        """Writes the file, and says which frames have no camera."""
        out = Path(self.out).expanduser()
        if out.suffix.lower() != ".json":
            raise UserError(f"{out}: expected the name of a camera file to write, as transforms.json")
        _check_free(out, self.overwrite)
        if self.most < FEWEST:
            raise UserError(f"--most is {self.most}; expected at least {FEWEST} frames")
        clip = open_clip(self.orbit)
        indices = choose_frames(clip, min(self.most, clip.count))
        content, missing = estimate_cameras(clip, indices, self.lens, out.parent)
        content = {"orientation_override": "none", "convention": CONVENTION, **content}
        _write_json(out, content)
        print("\n".join(report(read_cameras(str(out)))))
        if missing:
            print(f"without a camera: {', '.join(clip.files[i].name if clip.files else f'frame {i}' for i in missing)}")


def report(file: CameraFile) -> list[str]:
    """What `cameras check` prints."""
    found, c2w = stations(file), _poses(file)
    lenses = {"fisheye": 0, "bent by a lens": 0, "pinhole": 0}
    for frame in file.frames:
        lenses["fisheye" if frame.lens.fisheye else "bent by a lens" if frame.lens else "pinhole"] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in lenses.items() if count)
    sizes = sorted({"of unknown size" if f.size is None else f"{f.size[1]:g}x{f.size[0]:g}" for f in file.frames})
    lines = [f"{file.path}: {len(found)} cameras in {len(file.frames)} frames ({kinds}); pictures {', '.join(sizes)}"]
    fitting = readings(c2w)
    for (axes, poses), point in fitting.items():
        place = ", ".join(f"{value:.4g}" for value in point)
        lines.append(
            f"convention: as {WORDS[poses]} in {NAMES[axes]} axes all cameras look at one subject, at ({place})"
        )
    if not fitting:
        lines.append(
            "convention: in none do the cameras look at one subject, so nothing tells; read as OpenGL's camera to world"
        )
    places = c2w[:, :3, 3]
    apart = np.linalg.norm(places - places[0], axis=1).max()
    distance = file.focus or float(focus_distance(from_first(c2w).astype(np.float32)))
    focus = "not known: rotation only" if math.isinf(distance) else f"{distance:.4g}"
    away = np.linalg.norm(places[0])
    lines.append(
        f"unit: the first camera's distance to the subject is {focus}{' (the file says)' if file.focus else ''}, to the "
        f"farthest camera {apart:.4g}, to the origin {away:.4g}; models measure in the first of these, so any unit goes"
    )
    if away > 1e4 * max(apart, 1.0):
        lines.append(
            "unit: so far from the origin are places on a map (UTM), in metres; they are made relative without loss"
        )
    return lines + pose_notes(file, c2w)


def nerfstudio(file: CameraFile) -> dict[str, Any]:
    """The content of nerfstudio's transforms.json. Raises UserError for pictures whose size is not known."""
    frames = [_frame(file, frame) for frame in file.frames]
    focus = {} if file.focus is None else {"focus": file.focus}
    return {"orientation_override": "none", "convention": CONVENTION, **focus, "frames": frames}


def blender(file: CameraFile) -> dict[str, Any]:
    """The content of Blender's and D-NeRF's transforms_*.json: one field of view, square pixels, nothing else."""
    angles = [2 * math.atan(tangents(frame)[0]) for frame in file.frames]
    for frame in file.frames:
        across, down = tangents(frame)
        size = frame.size or (1.0, 1.0)
        centered = frame.center == (None, None) or np.allclose(frame.center, (size[1] / 2, size[0] / 2), atol=0.01)
        square = frame.size is None or math.isclose(across * size[0], down * size[1], rel_tol=1e-4)
        if frame.lens or not centered or not square or max(angles) - min(angles) > 1e-5:
            raise UserError(
                f"{file.path}: {frame.name} is no camera for Blender's form, which holds one camera_angle_x, square pixels, "
                "the principal point in the middle and no lens: expected --to nerfstudio"
            )
    frames = [
        {
            "file_path": "" if not frame.parts else str(PurePosixPath(*frame.parts)),
            "transform_matrix": opengl_from_opencv(frame.c2w).tolist(),
            **({} if frame.time is None else {"time": frame.time}),
        }
        for frame in file.frames
    ]
    return {"camera_angle_x": angles[0], "frames": frames}


def tangents(camera: FileCamera) -> tuple[float, float]:
    """Of half the field of view across and down; of pictures of unknown size as if they were square."""
    if camera.size is None and camera.angles is None:
        raise UserError(f"{camera.name} has no w and h, and there is no picture of its name to take them from")
    height, width = camera.size or (1.0, 1.0)
    K = camera.intrinsics((height, width))
    return width / (2 * K[0, 0]), height / (2 * K[1, 1])


def _check_free(out: Path, overwrite: bool) -> None:
    """Raises FileInTheWay unless a file may be written there."""
    if out.is_dir() or (out.exists() and not overwrite):
        raise FileInTheWay(f"{out} exists; add --overwrite to replace it, or choose another name")


def _write_json(out: Path, content: dict[str, Any]) -> None:
    _write_whole(out, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


def _write_whole(out: Path, write: Callable[[Path], object]) -> None:
    """The file appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        write(partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _poses(file: CameraFile) -> np.ndarray:
    return np.stack([frames[0].c2w for frames in stations(file)])


def _frame(file: CameraFile, camera: FileCamera) -> dict[str, Any]:
    """A frame of nerfstudio's form."""
    if camera.size is None:
        raise UserError(
            f"{file.path}: {camera.name} has no w and h, and there is no picture of its name to take them from"
        )
    height, width = map(int, camera.size)
    K = camera.intrinsics((height, width))
    names = OF_FISHEYE if camera.lens.fisheye else COEFFICIENTS
    bent = dict(zip(names, camera.lens.coefficients, strict=False))
    return {
        "file_path": camera.path,
        "transform_matrix": opengl_from_opencv(camera.c2w).tolist(),
        "camera_model": "OPENCV_FISHEYE" if camera.lens.fisheye else "OPENCV" if bent else "PINHOLE",
        **{"w": width, "h": height, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]},
        **bent,
        **({} if camera.label is None else {"camera_label": camera.label}),
        **({} if camera.time is None else {"time": camera.time}),
    }
