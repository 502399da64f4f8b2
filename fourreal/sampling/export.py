"""The verb `export`: a sampled grid as a folder that other tools read as it is.

    nerfstudio  images/camNN/NNNNNN.png, transforms.json with all frames and their `time`, and for methods of scenes that
                stand still transforms_NNNNNN.json with the views of one moment
    dnerf       the same pictures and transforms_train.json, transforms_val.json, transforms_test.json, as D-NeRF and
                4DGaussians read them; val and test hold the views that train does not
    colmap      NNNNNN/images and NNNNNN/sparse/0 of each moment, the model in text and binary; no points, as none are known

Blender's form, which D-NeRF's is, has one focal length and its principal point in the middle: other cameras are refused there.
COLMAP: "Output Format" of its manual. All count pixels from the outer corner of the top left one, as we do.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image

from fourreal import __version__
from fourreal.errors import MissingFile, UserError
from fourreal.geometry.pinhole import opengl_from_opencv
from fourreal.geometry.rays import check_cameras
from fourreal.host.folders import whole_folder
from fourreal.media.colmap import write_folder
from fourreal.media.npz import read_array
from fourreal.sampling.inputs import load_grid
from fourreal.sampling.results import (
    GridResult,
    check_destination,
    picture_path,
    transforms,
    write_json,
    write_pictures,
)
from fourreal.scene import Cameras

LARGEST_SHIFT = 0.1  # pixels that D-NeRF's form may move a point


@dataclass(frozen=True)
class Export:
    """Write a sampled grid in the form of another tool.

    RESULT is a folder that `fourreal sample` wrote, with cameras: from --cameras, --trajectory or a grid.
    """

    result: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RESULT")]]
    """folder of the sampled grid"""
    to: Literal["nerfstudio", "dnerf", "colmap"]
    """whose form: nerfstudio (static and with time), dnerf (D-NeRF, 4DGaussians), colmap (one model a moment)"""
    held_out: tuple[int, ...] = ()
    """dnerf: views of val and test, which train leaves out; by default the middle one"""
    out: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """folder to write; by default RESULT-FORM"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the folder if it exists"""

    def run(self) -> None:
        """Writes the whole folder or nothing."""
        folder = Path(os.path.expanduser(self.result))
        named = folder if folder.name not in ("", "..") else folder.resolve()
        out = Path(os.path.expanduser(self.out)) if self.out else named.with_name(f"{named.name}-{self.to}")
        result = read_result(folder)
        check_destination(out, self.overwrite)
        held_out = self._held_out(len(result.sampled))
        with whole_folder(out) as partial:
            partial.mkdir()
            match self.to:
                case "nerfstudio":
                    write_nerfstudio(partial, result)
                case "dnerf":
                    write_dnerf(partial, result, held_out)
                case "colmap":
                    write_colmap(partial, result)
            about = {"generator": f"fourreal {__version__}", "form": self.to, "cameras": result.cameras}
            write_json(partial / "metadata.json", about)
        views, times = result.given.shape
        tested = f", view {', '.join(map(str, held_out))} held out for val and test" if held_out else ""
        print(f"{self.to}: {views} views x {times} times{tested}; cameras {result.cameras}")
        print(f"written {out}")

    def _held_out(self, views: int) -> tuple[int, ...]:
        if self.to != "dnerf":
            if self.held_out:
                raise UserError(f"--held-out is for --to dnerf; leave it out with --to {self.to}")
            return ()
        held_out = self.held_out or (views // 2,)
        if not all(0 <= view < views for view in held_out) or len(set(held_out)) >= views:
            shown = " ".join(map(str, held_out))
            raise UserError(
                f"--held-out {shown}: expected some of views 0 to {views - 1}, and at least one left to train"
            )
        return tuple(sorted(set(held_out)))


def read_result(folder: Path) -> GridResult:
    """A grid with cameras that `sample` wrote. Raises UserError for a folder of another kind, and where cameras are unknown."""
    path, facts = folder / "grid.npz", folder / "transforms.json"
    if not path.is_file():
        raise MissingFile(f"{folder}: no grid.npz in it; expected a folder that fourreal sample wrote")
    frames, K, c2w = load_grid(path)
    if K is None or c2w is None:
        raise UserError(f"{folder}: its cameras are unknown; sample it with --cameras or --trajectory to export it")
    try:
        check_cameras(Cameras(K, c2w), len(frames))
        given = read_array(path, "given")
        if given is None or given.shape != frames.shape[:2] or given.dtype != bool:
            raise ValueError(f"`given` is no bool {list(frames.shape[:2])}")
        known = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
        fps, focus = (None if known.get(name) is None else float(known[name]) for name in ("fps", "focus"))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: damaged ({error}); sample it again") from None
    cameras = str(known.get("cameras", "known"))
    return GridResult(folder.name, frames, given, K=K, c2w=c2w, focus=focus, fps=fps, cameras=cameras)


def write_nerfstudio(folder: Path, result: GridResult) -> None:
    """Pictures, and transforms.json of all and of each moment. nerfstudio takes the folder, or one of the files, as --data."""
    write_pictures(folder, result.sampled)
    content = transforms(result)
    write_json(folder / "transforms.json", content)
    for t in range(result.sampled.shape[1]):
        moment = [frame for frame in content["frames"] if frame["frame_label"] == t]
        write_json(folder / f"transforms_{t:06d}.json", {**content, "frames": moment})


def write_dnerf(folder: Path, result: GridResult, held_out: Sequence[int]) -> None:
    """Pictures with an opaque alpha channel, as D-NeRF reads it, and the three files. Each begins at time 0, as it demands."""
    angle = field_of_view(result)
    views, times = result.given.shape
    opaque = np.full((*result.sampled.shape[:4], 1), 255, np.uint8)
    write_pictures(folder, np.concatenate([result.sampled, opaque], -1))
    poses = opengl_from_opencv(result.c2w)
    train = [view for view in range(views) if view not in held_out]
    for split, chosen in (("train", train), ("val", held_out), ("test", held_out)):
        frames = [
            {
                "file_path": f"./{picture_path(v, t).removesuffix('.png')}",
                "time": t / max(1, times - 1),
                "transform_matrix": poses[v].tolist(),
            }
            for t in range(times)
            for v in chosen
        ]
        write_json(folder / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})


def field_of_view(result: GridResult) -> float:
    """The angle, in radians, across the pictures of all views. Raises UserError where views differ or look past the middle."""
    height, width = result.sampled.shape[2:4]
    focal = float(np.mean(result.K[:, [0, 1], [0, 1]]))
    plain = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    moved = np.abs(plain @ np.linalg.inv(result.K.astype(float)) @ corners - corners).max()
    if not moved <= LARGEST_SHIFT:
        raise UserError(
            f"{result.name}: D-NeRF's form has one focal length and the principal point in the middle, which moves points "
            f"by {moved:.1f} px here; export --to nerfstudio or --to colmap"
        )
    return 2 * math.atan(width / 2 / focal)


def write_colmap(folder: Path, result: GridResult) -> None:
    """A folder a moment, with pictures camNN.png and a sparse model of their cameras."""
    frames = transforms(result)["frames"]
    for t in range(result.sampled.shape[1]):
        images, sparse = folder / f"{t:06d}" / "images", folder / f"{t:06d}" / "sparse"
        images.mkdir(parents=True)
        sparse.mkdir()
        moment = [frame for frame in frames if frame["frame_label"] == t]
        named = [frame | {"file_path": f"{frame['camera_label']}.png"} for frame in moment]
        for frame, picture in zip(named, result.sampled[:, t], strict=True):
            Image.fromarray(picture).save(images / frame["file_path"])
        write_folder(sparse / "0", named, binary=True)
