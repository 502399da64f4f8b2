"""A sampled grid as a folder: a page to look at, videos, arrays, cameras, and what it was made with.

    index.html          drag sideways for time, up and down for view; offline, one file
    contact.png         all cells: given, sampled, and if known the truth and the best copy
    grid.mp4            all views tiled, time to and fro
    videos/camNN.mp4    one video per view, its frames once in the source's time (enlarged to at least 256 px)
    grid.npz            frames uint8 [v, t, h, w, 3], given bool [v, t]; K [v, 3, 3], c2w [v, 4, 4] (OpenCV) if known
    metadata.json       settings, seed, versions, hash of the weights, timings, PSNR
    transforms.json     nerfstudio's form with the time of each frame; says so where cameras are not known or only asked for
    images/camNN/NNNNNN.png  all cells, as transforms.json names them

The folder is written beside its place under another name and renamed when it is whole.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from fourreal import __version__
from fourreal.errors import FileInTheWay
from fourreal.geometry.pinhole import opengl_from_opencv
from fourreal.host.folders import check_creatable, whole_folder
from fourreal.media.pictures import enlarged
from fourreal.media.sheet import Panel, contact_sheet
from fourreal.media.videos import write_video
from fourreal.metrics.baselines import BASELINES, best_copy, copy_freeze_time
from fourreal.metrics.moved_baselines import moved_baselines
from fourreal.metrics.pixels import psnr_by_motion
from fourreal.sampling.page import viewer_page

FPS = 8
SLOWEST, FASTEST = 0.1, 240.0  # frames a second; beyond them players give up, and nobody sees a motion
LOOK = 4  # seconds that grid.mp4 lasts at least
CONVENTION = (
    "transform_matrix is camera to world in the OpenGL convention (x right, y up, z backward), in the scene's units; "
    "fl_x, fl_y, cx, cy are in pixels, with (0, 0) the outer corner of the top left pixel; "
    "focus, where it is known, is the first camera's distance to its subject in the scene's units; "
    "time runs from 0 (first) to 1 (last), which is duration seconds later where the source's times are known"
)
UNKNOWN = "unknown: no frame has a transform_matrix; sample with --cameras, or estimate them from images/"

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class GridResult:
    """A sampled grid and what is known about it. `about`: JSON-ready facts for metadata.json; `focus`: see `Cameras`.

    `fps`: frames a second at which what moves is as fast as in the user's video; None where it is not known. `cameras`: where
    K and c2w come from, in words.
    """

    name: str
    sampled: UInt8[np.ndarray, "v t h w 3"]
    given: Bool[np.ndarray, "v t"]
    truth: UInt8[np.ndarray, "v t h w 3"] | None = None
    K: Float[np.ndarray, "v 3 3"] | None = None
    c2w: Float[np.ndarray, "v 4 4"] | None = None
    about: Mapping[str, object] = field(default_factory=dict)
    focus: float | None = None
    fps: float | None = None
    cameras: str = "known"

    @property
    def played(self) -> float:
        """Frames a second of videos/: `fps`, or FPS where it is not known or no player's."""
        return self.fps if self.fps and SLOWEST <= self.fps <= FASTEST else FPS


def scores(result: GridResult) -> Scores:
    """PSNR in dB of the sampled grid and each baseline over all, moving and static unknown pixels; {} without truth."""
    if result.truth is None:
        return {}
    grids = {"sampled": result.sampled} | {name: make(result.truth, result.given) for name, make in BASELINES.items()}
    return {name: psnr_by_motion(grid, result.truth, result.given) for name, grid in grids.items()}


def score_table(table: Scores, unknown: int) -> str:
    """The scores as aligned text, best of each column marked."""
    best = {kind: max(row[kind] for row in table.values()) for kind in ("all", "moving", "static")}
    head = f"PSNR in dB, {unknown} unknown cells"
    lines = [f"{head:<34}{'all':>8} {'moving':>8} {'static':>8}"]
    for name, row in table.items():
        numbers = ("-" if math.isnan(row[kind]) else f"{row[kind]:.2f}" for kind in best)
        marks = ("*" if row[kind] == best[kind] else " " for kind in best)
        cells = (f"{number:>8}{mark}" for number, mark in zip(numbers, marks, strict=True))
        lines.append(f"  {name:<32}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def panels(result: GridResult) -> list[Panel]:
    """What the contact sheet shows: the sampled grid, and if known the truth and the better of the two copies."""
    shown = [Panel("sampled", result.sampled)]
    if result.truth is not None:
        name, copy = best_copy(result.truth, result.given, result.truth)
        kind = name.removeprefix("copy of the ").removesuffix(" frame")
        shown += [Panel("truth", result.truth), Panel(f"best copy ({kind})", copy)]
    return shown


def compared(result: GridResult) -> list[Panel]:
    """What the page compares: the sampled grid, two baselines that need no truth, and the truth if it is known."""
    moved = moved_baselines(result.sampled, result.given)["mean of both moved"]
    shown = [
        Panel("sampled", result.sampled),
        Panel("nearest given frame", copy_freeze_time(result.sampled, result.given)),
        Panel("moved hint", moved),
    ]
    return shown if result.truth is None else [*shown, Panel("truth", result.truth)]


def check_destination(out: Path, overwrite: bool) -> None:
    """Raises OSError if `out` cannot be made, or exists, or with `overwrite` is not empty and not a folder of ours."""
    check_creatable(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise FileInTheWay(f"--out {out} is a file; name a folder")
    if not overwrite:
        raise FileInTheWay(f"--out {out} exists; add --overwrite to replace it, or choose another name")
    if any(out.iterdir()) and not _is_ours(out):
        raise FileInTheWay(f"--out {out} was not written by fourreal and is not replaced; choose another name")


def write_result(out: Path, result: GridResult, *, overwrite: bool = False) -> Path:
    """Writes the whole folder `out`, or nothing; returns the path of its index.html."""
    shown = panels(result)
    page = _page(result)
    table = scores(result)
    check_destination(out, overwrite)
    with whole_folder(out) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(page, encoding="utf-8")
        known = Panel("given", result.sampled, shown=result.given)
        contact_sheet([known, *shown], result.given, shorter=384 // max(result.given.shape)).save(
            folder / "contact.png"
        )
        _write_videos(folder, result.sampled, result.played)
        cameras = {"K": result.K, "c2w": result.c2w}
        arrays = {name: array for name, array in cameras.items() if array is not None}
        np.savez_compressed(folder / "grid.npz", frames=result.sampled, given=result.given, **arrays)
        write_pictures(folder, result.sampled)
        write_json(folder / "transforms.json", transforms(result))
        write_json(folder / "metadata.json", _metadata(result, table))
    return out / "index.html"


def transforms(result: GridResult) -> dict[str, object]:
    """nerfstudio's transforms.json with a `time` for each frame, as reconstructors of moving scenes read it."""
    views, times, height, width, _ = result.sampled.shape
    known = result.K is not None and result.c2w is not None
    frames = []
    for v, t in np.ndindex(views, times):
        frames.append(
            {
                "file_path": picture_path(v, t),
                **(_camera(result.K[v], result.c2w[v]) if known else {}),
                "w": width,
                "h": height,
                "time": t / max(1, times - 1),
                "camera_label": f"cam{v:02d}",
                "frame_label": t,
                "given": bool(result.given[v, t]),
            }
        )
    return {
        "camera_model": "OPENCV",
        "orientation_override": "none",
        "convention": CONVENTION,
        "cameras": result.cameras if known else UNKNOWN,
        "generator": f"fourreal {__version__}",
        **({} if result.focus is None else {"focus": result.focus}),
        **({} if result.fps is None else {"fps": result.fps, "duration": (times - 1) / result.fps}),
        "frames": frames,
    }


def _camera(K: Float[np.ndarray, "3 3"], c2w: Float[np.ndarray, "4 4"]) -> dict[str, object]:
    focal_and_center = zip(("fl_x", "fl_y", "cx", "cy"), ((0, 0), (1, 1), (0, 2), (1, 2)), strict=True)
    return {
        "transform_matrix": opengl_from_opencv(c2w).tolist(),
        **{key: float(K[place]) for key, place in focal_and_center},
    }


def _page(result: GridResult) -> str:
    shown = compared(result)
    options = result.about.get("options", {})
    facts = {key: options[key] for key in ("checkpoint", "seed", "steps", "guidance_scale") if key in options}
    facts["given"] = f"{result.given.sum()} of {result.given.size} cells"
    facts["moved hint"] = "given frames carried along optical flow"
    for panel in shown if result.truth is not None else ():
        if panel.frames is not result.truth:
            row = psnr_by_motion(panel.frames, result.truth, result.given)
            facts[f"PSNR {panel.title}"] = f"{row['all']:.2f} dB (moving {row['moving']:.2f})"
    videos = [_video_path(v) for v in range(len(result.sampled))]
    return viewer_page(
        f"{result.name} · fourreal",
        shown,
        result.given,
        truth=result.truth,
        about=facts,
        files=["grid.mp4", "grid.npz", "contact.png", *videos],
    )


def _write_videos(folder: Path, sampled: np.ndarray, fps: float) -> None:
    views, times = sampled.shape[:2]
    large = np.stack([enlarged(video) for video in sampled])
    (folder / "videos").mkdir()
    for v, video in enumerate(large):
        write_video(folder / _video_path(v), video, fps)
    across = math.ceil(math.sqrt(views))
    empty = -views % across
    large = np.concatenate([large, np.zeros((empty, *large.shape[1:]), np.uint8)])
    tiled = rearrange(large, "(down across) t h w c -> t (down h) (across w) c", across=across)
    to_and_fro = [*range(times), *range(times - 2, 0, -1)]
    rounds = math.ceil(LOOK * FPS / len(to_and_fro))
    write_video(folder / "grid.mp4", tiled[to_and_fro * rounds], FPS)


def write_pictures(folder: Path, sampled: UInt8[np.ndarray, "v t h w c"]) -> None:
    """images/camNN/NNNNNN.png of every cell."""
    for v, t in np.ndindex(sampled.shape[:2]):
        path = folder / picture_path(v, t)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sampled[v, t]).save(path)


def _video_path(v: int) -> str:
    return f"videos/cam{v:02d}.mp4"


def picture_path(v: int, t: int) -> str:
    return f"images/cam{v:02d}/{t:06d}.png"


def _metadata(result: GridResult, table: Scores) -> dict[str, object]:
    views, times, height, width, _ = result.sampled.shape
    return {
        "generator": f"fourreal {__version__}",
        "name": result.name,
        "grid": {"views": views, "times": times, "height": height, "width": width, "fps": result.played},
        "given": [{"view": int(v), "time": int(t)} for v, t in np.argwhere(result.given)],
        "psnr_db": {
            name: {kind: round(value, 4) if math.isfinite(value) else None for kind, value in row.items()}
            for name, row in table.items()
        },
        **result.about,
    }


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")


def _is_ours(folder: Path) -> bool:
    try:
        generator = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["generator"]
        return generator.startswith("fourreal ")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
