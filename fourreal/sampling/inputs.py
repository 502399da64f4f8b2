"""What the user gives, placed in the grid: clips at a view, at a time or at one cell, or a whole test grid.

    PATH@v=0      a fixed-view video: one frame per time, at view 0
    PATH@t=0      a freeze-time video: one frame per view, at time 0
    PATH@v=3,t=5  one picture at one cell

A fixed-view video and a freeze-time video cross in one cell, where they should show the same picture; the one named
first is taken there. Any other cell that is given twice is an error. Fixed-view videos began together: of other lengths or
rates than the first, they are cut to what all show and read at the same moments.
"""

import difflib
import glob
import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from fourreal.errors import MissingFile, UserError
from fourreal.grid import even_cut
from fourreal.media.clips import (
    Clip,
    choose_frames,
    choose_together,
    frame_sizes,
    natural_order,
    open_clip,
    read_frames,
)
from fourreal.media.npz import read_array
from fourreal.media.pairing import Rig, Source, sources
from fourreal.media.pictures import Crop, cut_away, fit, fit_intrinsics
from fourreal.media.transforms import CameraFile
from fourreal.metrics.pixels import psnr

GRIDS = Path(__file__).parents[1] / "assets" / "grids"
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".y4m", ".gif", ".npz")
DIFFERENT = 15.0  # dB; below this two pictures are not the same moment from the same camera


@dataclass(frozen=True)
class Placement:
    """A path and the cells that it fills: a view, a time, or both."""

    path: str
    view: int | None
    time: int | None

    def __str__(self) -> str:
        axes = [f"{axis}={value}" for axis, value in (("v", self.view), ("t", self.time)) if value is not None]
        return f"{self.path}@{','.join(axes)}"


@dataclass(frozen=True)
class GridInput:
    """Frames in their cells (unknown cells are black), and what is known beside them."""

    frames: UInt8[np.ndarray, "v t h w 3"]
    given: Bool[np.ndarray, "v t"]
    name: str
    truth: UInt8[np.ndarray, "v t h w 3"] | None = None
    K: Float[np.ndarray, "v 3 3"] | None = None
    c2w: Float[np.ndarray, "v 4 4"] | None = None
    focus: float | None = None
    """see `scene.Cameras`, of K and c2w"""
    notes: tuple[str, ...] = field(default=())
    crop: Crop = "center"
    """how pictures were brought to size"""
    fps: float | None = None
    """frames a second of the first fixed-view video's chosen frames, where it is known"""


def parse_placement(text: str) -> Placement:
    """`PATH@v=0`, `PATH@t=0` or `PATH@v=3,t=5`; the path may contain `@` itself."""
    path, _, place = text.rpartition("@")
    axes = re.findall(r"([vt])=([0-9]{1,9})", place)
    whole = ",".join("=".join(axis) for axis in axes) == place
    if not path or not axes or not whole or len(dict(axes)) != len(axes):
        raise UserError(f"--given {text}: it does not say where; end it in @v=N (a view), @t=N (a time) or @v=N,t=N")
    cell = dict(axes)
    return Placement(path, *(int(cell[axis]) if axis in cell else None for axis in "vt"))


def read_placements(
    placements: Sequence[Placement],
    shape: tuple[int, int, int, int],
    *,
    frames: str | None = None,
    crop: Crop = "center",
    cameras: CameraFile | None = None,
) -> GridInput:
    """Reads every clip into its cells of a grid of `shape` (views, times, height, width). `frames`: see choose_frames.

    `cameras` are paired with the pictures, which are undistorted where a lens bends them; see media/pairing.py.
    Raises ValueError for a place outside the grid, a cell that is given twice and a clip that is too short, before it
    decodes anything; errors as `open_clip` does.
    """
    views, times, height, width = shape
    owner: dict[tuple[int, int], Placement] = {}
    shared, chosen, notes = [], [], []
    opened = [(placement, open_clip(placement.path), _cells(placement, views, times)) for placement in placements]
    fixed_views = [clip for placement, clip, _ in opened if placement.time is None]
    together, aligned = choose_together(fixed_views, times, frames) if fixed_views else ([], "")
    notes += [f"views: {aligned}"] if aligned else []
    for placement, clip, cells in opened:
        indices = together.pop(0) if placement.time is None else choose_frames(clip, len(cells), frames)
        if clip.count > len(cells):
            notes.append(f"{clip.name}: {clip.count} frames -> {', '.join(map(str, indices))}")
        notes += _uneven_notes(clip, indices)
        cuts = [cut_away(shown, (height, width), crop) for shown in sorted(frame_sizes(clip, indices))]
        notes += _crop_notes(clip.name, max(cuts), (height, width))
        for cell in cells:
            other = owner.setdefault(cell, placement)
            if other is not placement:
                if not _cross(other, placement):
                    raise UserError(
                        f"cell v={cell[0]},t={cell[1]} is given twice, by {other} and by {placement}: leave one out"
                    )
                shared.append((cell, other, placement))
        chosen.append((placement, clip, indices, cells))

    rig = None if cameras is None else _rig(cameras, views, chosen)
    grid = np.zeros((views, times, height, width, 3), np.uint8)
    crossing = {}
    for placement, clip, indices, cells in chosen:
        change = () if rig is None else (_straightener(rig, indices, cells),)
        for cell, frame in zip(cells, read_frames(clip, indices, (height, width), crop, *change), strict=True):
            if owner[cell] is placement:
                grid[cell] = frame
            else:
                crossing[cell, placement] = frame
    for cell, first, second in shared:
        notes.append(_crossing_note(cell, first, second, psnr(crossing[cell, second], grid[cell])))
    given = np.zeros((views, times), bool)
    given[tuple(np.array(list(owner)).T)] = True
    fixed_view = (_chosen_fps(clip, indices) for placement, clip, indices, _ in chosen if placement.time is None)
    fps = next((rate for rate in fixed_view if rate is not None), None)
    found = GridInput(grid, given, _name_of(placements[0].path), notes=tuple(notes), crop=crop, fps=fps)
    return found if rig is None else _with_cameras(found, rig)


def place_views(path: str, views: int) -> tuple[list[Placement], str]:
    """One video per view from a folder or glob, in natural order at views 0, 1, ..., and the line that says so.

    A folder counts by its video files, or if it has none by its folders of pictures.
    """
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        found = [entry for entry in entries if entry.suffix.lower() in VIDEOS and entry.is_file()]
        found = found or [entry for entry in entries if entry.is_dir()]
    else:
        found = [Path(match) for match in glob.glob(str(folder), recursive=True)]
    if not found:
        raise MissingFile(
            f"--views {path}: no videos there; expected one video or folder of pictures per view "
            "(pictures of one moment: --orbit; of one camera: --video)"
        )
    if len(found) > views:
        raise UserError(
            f"--views {path}: {len(found)} videos, but the checkpoint has {views} views; choose with a glob"
        )
    found = sorted(found, key=natural_order)
    listed = ", ".join(f"{entry.name} -> view {view}" for view, entry in enumerate(found))
    return [Placement(str(entry), view, None) for view, entry in enumerate(found)], f"{path}: {listed}"


def read_grid(
    grid: str | None, shape: tuple[int, int, int, int], *, crop: Crop = "center", cameras: CameraFile | None = None
) -> GridInput:
    """A whole grid whose truth is known, with view 0 and time 0 given: a bundled one (None: the first of that size) or an npz.

    The npz holds `frames` uint8 [v, t, h, w, 3] and, if known, K [v, 3, 3] in pixels and c2w [v, 4, 4] (OpenCV). One
    with more views or times than `shape` is thinned out as in training, at the largest even stride; pixels are brought to
    size and K with them. `cameras` take the place of its own.
    Raises FileNotFoundError for an unknown name, ValueError for a grid that is smaller or not in this form.
    """
    path = _find_grid(grid, shape)
    frames, K, c2w = load_grid(path)
    views, times, *size = shape
    notes, chosen = [], []
    for axis, have, want in (("views", frames.shape[0], views), ("times", frames.shape[1], times)):
        if have < want:
            raise UserError(f"{path}: {have} {axis}, but the checkpoint's grid has {want}; give a larger grid")
        chosen.append(even_cut(have, want))
        if have > want:
            notes.append(f"{path.name}: {have} {axis} -> {', '.join(map(str, chosen[-1]))}")
    truth = frames[np.ix_(*chosen)]
    old_size = truth.shape[2:4]
    notes += _crop_notes(path.name, cut_away(old_size, tuple(size), crop), tuple(size))
    flat = rearrange(truth, "v t h w c -> (v t) h w c")
    flat = np.stack([np.asarray(fit(Image.fromarray(frame), tuple(size), crop)) for frame in flat])
    truth = rearrange(flat, "(v t) h w c -> v t h w c", v=views)
    given = np.zeros((views, times), bool)
    given[0, :] = given[:, 0] = True
    found = GridInput(
        frames=np.where(given[:, :, None, None, None], truth, np.uint8(0)),
        given=given,
        name=path.stem,
        truth=truth,
        K=None if K is None else fit_intrinsics(K[chosen[0]], old_size, tuple(size), crop),
        c2w=None if c2w is None else c2w[chosen[0]],
        notes=tuple(notes),
        crop=crop,
    )
    if cameras is None:
        return found
    stored = sources(Clip(str(path), "npz", len(frames)), range(len(frames)), sweep=True)
    rig = Rig(cameras, views, {view: [stored[place]] for view, place in enumerate(chosen[0])}, stored)
    rig.sizes |= dict.fromkeys(range(views), old_size)
    if any(camera.lens for camera in rig.cameras):
        raise UserError(
            f"{cameras.path}: its lenses bend lines, and a test grid is of pinholes; expected no k1, k2, ..."
        )
    return _with_cameras(found, rig)


def _rig(
    cameras: CameraFile, views: int, chosen: Sequence[tuple[Placement, Clip, list[int], list[tuple[int, int]]]]
) -> Rig:
    """The cameras of the views, by the frames that are in each."""
    in_view: dict[int, list[Source]] = {}
    every: list[Source] = []
    for placement, clip, indices, cells in chosen:
        sweep = placement.view is None
        for (view, _), source in zip(cells, sources(clip, indices, sweep), strict=True):
            in_view.setdefault(view, []).append(source)
        every += sources(clip, range(clip.count), sweep)
    return Rig(cameras, views, in_view, every)


def _straightener(
    rig: Rig, indices: Sequence[int], cells: Sequence[tuple[int, int]]
) -> Callable[[int, Image.Image], Image.Image]:
    """What to do with the frames of a clip, by their indices."""
    view_of = {index: view for index, (view, _) in zip(indices, cells, strict=True)}
    return lambda index, picture: rig.straighten(view_of[index], picture)


def _with_cameras(found: GridInput, rig: Rig) -> GridInput:
    K, c2w = rig.fitted(found.frames.shape[2:4], found.crop)
    return replace(found, K=K, c2w=c2w, focus=rig.file.focus, notes=(*found.notes, *rig.notes()))


def _name_of(path: str) -> str:
    """A name for files from the first input's path."""
    return re.sub(r"[^\w.-]+", "-", Path(path).stem).strip("-.") or "given"


def _crop_notes(name: str, cut: str, size: tuple[int, int]) -> list[str]:
    words = f"{name}: {cut} is cut away to fit {size[0]}x{size[1]}; --crop pad keeps all, between black bars"
    return [words] if cut else []


def _uneven_notes(clip: Clip, indices: Sequence[int]) -> list[str]:
    """Says so where some chosen frames are more than twice as far apart as others."""
    gaps = np.diff(clip.moments[list(indices)]) if clip.times else np.zeros(0)
    if not gaps.size or gaps.max() <= 2.001 * gaps.min():
        return []
    return [f"{clip.name}: the frames taken are {gaps.min():.3g} to {gaps.max():.3g} s apart, and count as equal steps"]


def _chosen_fps(clip: Clip, indices: Sequence[int]) -> float | None:
    """Frames a second at which what moves in the chosen frames is as fast as in the clip; None: not known."""
    lasts = clip.times[max(indices)] - clip.times[min(indices)] if clip.times else 0
    return (len(indices) - 1) / lasts if lasts > 0 else None


def _cells(placement: Placement, views: int, times: int) -> list[tuple[int, int]]:
    for word, value, count in (("view", placement.view, views), ("time", placement.time, times)):
        if value is not None and value >= count:
            raise UserError(f"--given {placement}: there is no {word} {value}; the grid has {word}s 0 to {count - 1}")
    in_view = range(views) if placement.view is None else [placement.view]
    in_time = range(times) if placement.time is None else [placement.time]
    return [(v, t) for v in in_view for t in in_time]


def _cross(one: Placement, other: Placement) -> bool:
    """Whether one is a fixed-view video and the other a freeze-time video."""
    return {(p.view is None, p.time is None) for p in (one, other)} == {(True, False), (False, True)}


def _crossing_note(cell: tuple[int, int], first: Placement, second: Placement, agreement: float) -> str:
    note = f"cell v={cell[0]},t={cell[1]} is in both {first} and {second}: the frame of {first} is used"
    if agreement < DIFFERENT:
        note += (
            f"; warning: they differ there ({agreement:.1f} dB) but should show the same moment from the same camera"
        )
    return note


def bundled_grids(shape: tuple[int, int, int, int]) -> list[Path]:
    """The bundled test grids that have at least so many views, times and pixels. Raises FileNotFoundError for none."""
    bundled = sorted(GRIDS.glob("*.npz"), key=natural_order)
    found = [path for path in bundled if all(map(operator.ge, load_grid(path)[0].shape, shape))]
    if not found:
        views, times, height, width = shape
        raise MissingFile(
            f"no bundled test grid has {views} views x {times} times of {height} x {width} pixels; name one with --grid"
        )
    return found


def _find_grid(grid: str | None, shape: tuple[int, int, int, int]) -> Path:
    if grid is None:
        return bundled_grids(shape)[0]
    bundled = sorted(GRIDS.glob("*.npz"), key=natural_order)
    names = [path.stem for path in bundled]
    if grid in names:
        return bundled[names.index(grid)]
    path = Path(os.path.expanduser(grid))
    if path.is_file():
        return path
    near = difflib.get_close_matches(grid, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise MissingFile(f"--grid {grid}: neither a file nor a bundled grid ({', '.join(names) or 'none here'}){hint}")


def load_grid(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """`frames`, `K` and `c2w` of an npz as `read_grid` takes it. Raises UserError for another form."""
    try:
        arrays = {name: read_array(path, name) for name in ("frames", "K", "c2w")}
    except Exception as error:  # a damaged archive can make its readers raise anything
        raise UserError(f"{path}: cannot be read as npz ({error}); expected frames uint8 [v, t, h, w, 3]") from error
    frames, K, c2w = arrays.values()
    if frames is None or frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        have = "missing" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        raise UserError(f"{path}: `frames` is {have}; expected uint8 [v, t, h, w, 3]")
    for name, array, side in (("K", K, 3), ("c2w", c2w, 4)):
        if array is not None and array.shape != (len(frames), side, side):
            raise UserError(
                f"{path}: `{name}` is {list(array.shape)}; expected [{len(frames)}, {side}, {side}], one a view"
            )
        if array is not None and (array.dtype.kind not in "fiu" or not np.isfinite(array).all()):
            raise UserError(
                f"{path}: `{name}` ({array.dtype}) is not finite numbers; expected float32, or leave it out"
            )
    return frames, K, c2w
