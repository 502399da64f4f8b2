"""How consistent a grid is in itself, by what is exact here: the renderer's depth, cameras and the truth's motion. In levels.

    reprojection   |x[a, t](p) - x[b, t](q)|: p a pixel of the subject, q where the next view b sees the same surface point
    warp           |x[v, t](p) - x[v, t + 1](p + f(p))|: f the truth's flow, where it leads back
    flicker        |x[v, t](p) - x[v, t + 1](p)|: p static in the truth

means over the channels and over pixels of pairs of which at least one cell is unknown. The truth itself is not at 0: shading,
edges and the pixels' grid remain. A blurred grid is below it, so read these beside sharpness.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fourreal.geometry.pinhole import project, unproject
from fourreal.metrics.pixels import moving_mask
from fourreal.motion.moved import error
from fourreal.motion.optical_flow import flow

SAME_DEPTH = 0.02  # share of its depth by which a point may miss the surface that a view shows and still be on it


class Surface(NamedTuple):
    """The geometry of a grid, of which its cameras and depth are known."""

    depth: Float[np.ndarray, "v t h w"]
    """along the camera's z"""
    subject: Bool[np.ndarray, "v t h w"]
    K: Float[np.ndarray, "v 3 3"]
    c2w: Float[np.ndarray, "v 4 4"]

    def seen(
        self, points: Float[np.ndarray, "n 3"], v: int, t: int
    ) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]:
        """(where a view sees world points, in pixels; which of them it shows: in the picture and on the surface there)."""
        places, depth = project(points, self.K[v], self.c2w[v])
        height, width = self.depth.shape[2:]
        with np.errstate(invalid="ignore"):
            inside = (depth > 0) & ((places >= 0.5) & (places <= [width - 0.5, height - 0.5])).all(-1)
        column, row = np.where(inside[:, None], places, 0).astype(int).T
        there = self.depth[v, t, row, column]
        return places, inside & (np.abs(there - depth) <= SAME_DEPTH * depth)


def reprojection(
    frames: UInt8[np.ndarray, "v t h w 3"], given: Bool[np.ndarray, "v t"], surface: Surface
) -> dict[str, float]:
    """The mean error over points that a given frame of their time shows (`seen`), and over the others (`unseen`); else nan."""
    views, times = given.shape
    errors: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for t in range(times):
        for a in range(views - 1):
            if given[a, t] and given[a + 1, t]:
                continue
            at = surface.subject[a, t]
            points = unproject(surface.depth[a, t].astype(np.float64), surface.K[a], surface.c2w[a])[at]
            places, shown = surface.seen(points, a + 1, t)
            known = np.zeros(len(points), bool)
            for v in np.flatnonzero(given[:, t]):
                known |= surface.seen(points, int(v), t)[1]
            off = np.abs(_read(frames[a + 1, t], places) - frames[a, t][at]).mean(-1)
            for told in (True, False):
                errors[told].append(off[shown & (known == told)])
    return {"seen": _mean(errors[True]), "unseen": _mean(errors[False])}


def warp_and_flicker(
    frames: UInt8[np.ndarray, "v t h w 3"], truth: UInt8[np.ndarray, "v t h w 3"], given: Bool[np.ndarray, "v t"]
) -> tuple[float, float]:
    """(the warp error over all pixels whose flow leads back, the flicker of static pixels); nan where there are none."""
    static, warp, flicker = ~moving_mask(truth), [], []
    for v, t in np.ndindex(given.shape[0], given.shape[1] - 1):
        if given[v, t] and given[v, t + 1]:
            continue
        there, back = flow(truth[v, t], truth[v, t + 1]), flow(truth[v, t + 1], truth[v, t])
        row, column = np.mgrid[: truth.shape[2], : truth.shape[3]] + 0.5
        places = np.stack([column, row], -1) + there
        now, then = frames[v, t], frames[v, t + 1]
        leads_back = error(there, back) <= 1
        warp.append(np.abs(_read(then, places) - now).mean(-1)[leads_back])
        flicker.append(np.abs(then.astype(np.float64) - now).mean(-1)[static[v, t]])
    return tuple(_mean(parts) for parts in (warp, flicker))


def _mean(parts: list[np.ndarray]) -> float:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(values.mean()) if values.size else float("nan")


def _read(frame: UInt8[np.ndarray, "h w 3"], places: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 3"]:
    """A frame between its pixels' centres, linearly; the edge beyond them. `places` are column and row, from the outer edge."""
    height, width = frame.shape[:2]
    x, y = (np.clip(places[..., k] - 0.5, 0, side - 1) for k, side in enumerate((width, height)))
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    x, y, frame = (x - left)[..., None], (y - top)[..., None], frame.astype(np.float64)
    upper = (1 - x) * frame[top, left] + x * frame[top, right]
    lower = (1 - x) * frame[below, left] + x * frame[below, right]
    return (1 - y) * upper + y * lower
