"""What a sampled grid must beat: copies of given frames, and the sum of the differences. NumPy only.

For an unknown cell (v, t), with t0 the nearest given time of its view and v0 the nearest given view of its time:

    copy_freeze_time:    x[v, t0]                                 right wherever nothing moves: the strong one
    copy_fixed_view:     x[v0, t]                                 right where the camera makes no difference
    sum_of_differences:  clip(x[v, t0] + x[v0, t] - x[v0, t0])    adds the subject's change to the camera's change

A cell without such a frame falls back to the other copy, then to the nearest given frame of the grid, and to mid grey where
nothing is given. Given cells come back as they are. Of two equally near frames the earlier one counts.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

from fourreal.metrics.pixels import psnr

MID_GREY = 128

Frames = UInt8[np.ndarray, "v t h w 3"]
Given = Bool[np.ndarray, "v t"]


def copy_freeze_time(frames: Frames, given: Given) -> Frames:
    """Every unknown cell is the nearest given frame of its own view (the frame of a freeze-time video)."""
    return _filled(frames, given, lambda v, t: _same_view(given, v, t) or _same_time(given, v, t))


def copy_fixed_view(frames: Frames, given: Given) -> Frames:
    """Every unknown cell is the nearest given frame of its own time (the frame of a fixed-view video)."""
    return _filled(frames, given, lambda v, t: _same_time(given, v, t) or _same_view(given, v, t))


def sum_of_differences(frames: Frames, given: Given) -> Frames:
    """`x[v, t0] + x[v0, t] - x[v0, t0]`, clipped, over the nearest (v0, t0) with all three given; else the copy."""
    out = copy_freeze_time(frames, given)
    for v, t in np.argwhere(~given):
        if corner := nearest_corner(given, v, t):
            w, s = corner
            out[v, t] = np.clip(frames[v, s].astype(np.int16) + frames[w, t] - frames[w, s], 0, 255)
    return out


BASELINES: dict[str, Callable[[Frames, Given], Frames]] = {
    "copy of the freeze-time frame": copy_freeze_time,
    "copy of the fixed-view frame": copy_fixed_view,
    "sum of the differences": sum_of_differences,
}
COPIES = tuple(BASELINES)[:2]


def best_copy(frames: Frames, given: Given, truth: Frames) -> tuple[str, Frames]:
    """The one of the two copies with the higher PSNR on the unknown cells, with its name."""
    copies = [(name, BASELINES[name](frames, given)) for name in COPIES]
    return max(copies, key=lambda copy: psnr(copy[1], truth, ~given[:, :, None, None]))


def nearest_corner(given: Given, v: int, t: int) -> tuple[int, int] | None:
    """The nearest (v0, t0) such that (v0, t0), (v, t0) and (v0, t) are all given."""
    corners = [(int(w), int(s)) for w, s in np.argwhere(given) if given[v, s] and given[w, t]]
    return min(corners, key=lambda corner: (abs(corner[0] - v) + abs(corner[1] - t), *corner), default=None)


def _filled(frames: Frames, given: Given, source: Callable[[int, int], tuple[int, int] | None]) -> Frames:
    out = np.where(given[:, :, None, None, None], frames, np.uint8(MID_GREY))
    for v, t in np.argwhere(~given):
        if found := source(v, t) or _nearest(given, v, t):
            out[v, t] = frames[found]
    return out


def _same_view(given: Given, v: int, t: int) -> tuple[int, int] | None:
    times = np.flatnonzero(given[v])
    return (v, times[np.abs(times - t).argmin()]) if times.size else None


def _same_time(given: Given, v: int, t: int) -> tuple[int, int] | None:
    views = np.flatnonzero(given[:, t])
    return (views[np.abs(views - v).argmin()], t) if views.size else None


def _nearest(given: Given, v: int, t: int) -> tuple[int, int] | None:
    cells = map(tuple, np.argwhere(given).tolist())
    return min(cells, key=lambda cell: abs(cell[0] - v) + abs(cell[1] - t), default=None)
