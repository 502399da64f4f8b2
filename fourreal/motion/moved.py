"""Given frames moved to where they should be in an unknown cell, along optical flow: hints that move.

F[a -> b] is the flow from cell a to cell b: what is at p in a is at p + F(p) in b. For an unknown cell (v, t), of the nearest
given rectangle (v, t1), (v1, t), (v1, t1):

    A   pixel p of (v, t1) is at q = p + F[(v,t1) -> (v1,t1)](p) in the rectangle's corner, which moves by
        m = F[(v1,t1) -> (v1,t)](q): p is splatted at p + m
    B   pixel q of (v1, t) was at r = q + F[(v1,t) -> (v1,t1)](q) in the corner, which view v sees moved by
        n = F[(v1,t1) -> (v,t1)](r): q is splatted at q + n

Flow goes from given cell to given cell: small steps, one after the other, see far more than a leap over the whole arc. Where
pixels collide, those stay whose flow leads back to them, of these what moves most in time: what moves is mostly in front.
Without a rectangle, a cell between two given ones of its view (or of its time) takes both, moved by their share of the way;
without that either, there is nothing to move.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fourreal.motion.optical_flow import flow as dis
from fourreal.motion.splat import landing, read_at, splat

WORKING = 96  # short side in pixels at which flow and splatting take place, at least
OUTSIDE = 1e3  # the error of a flow that leaves the picture
Cell = tuple[int, int]
Field = Float[np.ndarray, "h w 3"]  # a flow (right, down) with its error, at most 1 where it leads back
Flow = Callable[[Cell, Cell], Float[np.ndarray, "h w 2"]]


class Route(NamedTuple):
    """How the two moved pictures of a cell come about."""

    sources: tuple[Cell, Cell]
    """the given cells whose pixels are moved; of a rectangle, that of the cell's view first"""
    corner: Cell | None
    """of the rectangle; None: the cell is between the two"""
    share: float = 0.0
    """how far along from the first source to the second the cell is, where it is between them"""


def route(given: Bool[np.ndarray, "v t"], cell: Cell) -> Route | None:
    """The nearest rectangle by |dv| / V + |dt| / T, else the nearest pair around the cell; ties go to the lower indices."""
    (views, times), (v, t) = given.shape, cell
    corners = [
        (abs(w - v) / views + abs(s - t) / times, w, s)
        for w in np.flatnonzero(given[:, t]).tolist()
        for s in np.flatnonzero(given[v]).tolist()
        if given[w, s]
    ]
    if corners:
        _, w, s = min(corners)
        return Route(((v, s), (w, t)), (w, s))
    pairs = []
    for line, place, at in ((given[:, t], v, lambda w: (w, t)), (given[v], t, lambda s: (v, s))):
        before, after = np.flatnonzero(line[:place]).tolist(), np.flatnonzero(line[place:]).tolist()
        if before and after:
            low, high = before[-1], place + after[0]
            pairs.append(((high - low) / len(line), Route((at(low), at(high)), None, (place - low) / (high - low))))
    return min(pairs, key=lambda pair: pair[0])[1] if pairs else None


def moved_frames(
    frames: UInt8[np.ndarray, "v t h w 3"],
    given: Bool[np.ndarray, "v t"],
    valid: Bool[np.ndarray, "v t h w"] | None = None,
    flow: Flow | None = None,
) -> dict[Cell, UInt8[np.ndarray, "2 h w 4"]]:
    """The two moved pictures of every unknown cell that has any.

    The last channel is how far to trust a pixel: 255 / (1 + e), e the worst error of its flows (see `error`), so 128 and more
    where they lead back, and 0 in holes, which are black. Frames smaller than WORKING are enlarged before they are moved; then
    a pixel is the mean of what fills it. `flow` (a, b) gives F[a -> b] in pixels of the frames as they are moved; None: DIS.
    """
    work, whole = _enlarged(frames, given), None if valid is None else _enlarged(valid.astype(np.uint8) * 255, given)
    between = functools.cache(flow or (lambda a, b: dis(work[a], work[b])))

    step = functools.cache(lambda a, b: np.dstack([between(a, b), error(between(a, b), between(b, a))]))

    @functools.cache
    def field(start: Cell, end: Cell) -> Field:
        """The flow over the given cells between two of one view or one time."""
        over = _next(given, start, end)
        return step(start, end) if over == end else _then(step(start, over), field(over, end))

    moved = {}
    for cell in map(tuple, np.argwhere(~given).tolist()):
        if found := route(given, cell):
            fields = _between(found, field) if found.corner is None else _over_corner(found, field)
            pictures = [
                _moved(work[source], *each, None if whole is None else whole[source] == 255)
                for source, each in zip(found.sources, fields, strict=True)
            ]
            moved[cell] = np.stack([_reduced(picture, frames.shape[2:4]) for picture in pictures])
    return moved


def error(there: Float[np.ndarray, "h w 2"], back: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w"]:
    """How far a flow and the one back are from cancelling: |f + b|^2 / (0.0006 (|f|^2 + |b|^2) + 0.03).

    The check of Sundaram et al. 2010 is e <= 1 with constants 16 times as large. On the scene of tests/motion/test_moved.py 91
    to 96 % of the pixels that pass it are within one of where they belong, with these constants 99 %. OUTSIDE where the flow
    leaves the picture.
    """
    nearest, inside = landing(there)
    back = read_at(back, nearest)
    left = _square(there + back)
    return np.where(inside, left / (0.0006 * (_square(there) + _square(back)) + 0.03), OUTSIDE).astype(np.float32)


def _next(given: Bool[np.ndarray, "v t"], start: Cell, end: Cell) -> Cell:
    """The first given cell on the way from one cell to another of its view or its time."""
    axis = 0 if start[1] == end[1] else 1
    step = 1 if end[axis] > start[axis] else -1
    for place in range(start[axis] + step, end[axis], step):
        cell = (place, start[1]) if axis == 0 else (start[0], place)
        if given[cell]:
            return cell
    return end


def _read(field: Field, motion: Float[np.ndarray, "h w _"]) -> Field:
    """`field` at the pixel nearest to p + motion(p), never between two: they may be of two surfaces."""
    nearest, inside = landing(motion)
    read = read_at(field, nearest)
    read[..., 2][~inside] = OUTSIDE
    return read


def _then(first: Field, second: Field) -> Field:
    """The flow along one field and on along the next."""
    more = _read(second, first)
    more[..., :2] += first[..., :2]
    np.maximum(more[..., 2], first[..., 2], out=more[..., 2])
    return more


def _over_corner(way: Route, field: Callable[[Cell, Cell], Field]) -> list[tuple[Field, Float[np.ndarray, "h w"]]]:
    """(where every pixel of a source goes, how much it moves in time) of A and of B."""
    (of_view, of_time), corner = way.sources, way.corner
    moves = []
    for there, on in (
        (field(of_view, corner), field(corner, of_time)),
        (field(of_time, corner), field(corner, of_view)),
    ):
        goes = _read(on, there)
        goes[..., 2] = np.maximum(goes[..., 2], there[..., 2])
        moves.append(goes)
    return [(moves[0], _length(moves[0])), (moves[1], _length(field(of_time, corner)))]


def _between(way: Route, field: Callable[[Cell, Cell], Field]) -> list[tuple[Field, Float[np.ndarray, "h w"]]]:
    """The same of two sources on both sides of the cell, which both go their share of the way."""
    moves = []
    for start, end, share in ((*way.sources, way.share), (*way.sources[::-1], 1 - way.share)):
        whole = field(start, end)
        moves.append((whole * np.float32([share, share, 1]), _length(whole)))
    return moves


def _square(motion: Float[np.ndarray, "h w _"]) -> Float[np.ndarray, "h w"]:
    return motion[..., 0] ** 2 + motion[..., 1] ** 2


def _length(field: Field) -> Float[np.ndarray, "h w"]:
    return np.hypot(field[..., 0], field[..., 1])


def _moved(
    picture: UInt8[np.ndarray, "h w 3"],
    field: Field,
    motion: Float[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"] | None,
) -> UInt8[np.ndarray, "h w 4"]:
    """A picture moved along a field, with its trust as a fourth channel."""
    rank = (motion * (127 / max(float(motion.max()), 1e-6))).astype(np.uint8) + 128 * (field[..., 2] <= 1)
    trust = np.maximum(255 / (1 + field[..., 2]), 1)
    moved, _ = splat(np.dstack([picture, trust.astype(np.uint8)]), field, rank.astype(np.uint8), valid)
    return moved


def _enlarged(frames: UInt8[np.ndarray, "v t h w *c"], given: np.ndarray) -> dict[Cell, UInt8[np.ndarray, "y x *c"]]:
    """The given frames (or masks) at the size that they are moved at."""
    import cv2

    height, width = frames.shape[2:4]
    scale = max(1.0, WORKING / min(height, width))
    size = round(width * scale), round(height * scale)
    cells = map(tuple, np.argwhere(given).tolist())
    return {cell: cv2.resize(frames[cell], size, interpolation=cv2.INTER_LINEAR) for cell in cells}


def _reduced(picture: UInt8[np.ndarray, "y x 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 4"]:
    """A moved picture at `size`: the mean of what fills a pixel, and of its trust."""
    import cv2

    if picture.shape[:2] == tuple(size):
        return picture
    parts = picture, picture[..., 3] > 0
    mean, filled = (cv2.resize(part.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) for part in parts)
    mean[..., :3] /= np.maximum(filled, 1e-6)[..., None]
    return np.rint(mean).clip(0, 255).astype(np.uint8)
