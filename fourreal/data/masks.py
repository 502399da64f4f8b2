"""Which cells of a grid, or frames of a clip, are given to the model during training.

One kind of mask is drawn per example with the weights of a mix; the mix covers what users ask for: a video and a photo
orbit ("L": one view at all times and one time in all views), one video, one orbit, a few synchronised cameras, one
picture, scattered pictures. The given view and time are the first ones half the time and uniformly random otherwise, so
the model knows L-shapes, videos and orbits at any place. Never is every cell given: a loss over unknown cells would be
empty. A draw that gives every cell (possible in grids with one view or one time) becomes one of scattered cells.
"""

from dataclasses import dataclass, fields

import numpy as np


class _Weights:
    """Weights of the kinds of masks: not negative, not all zero; they need not sum to one."""

    def __post_init__(self):
        weights = self.probabilities(normalize=False)
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
            raise ValueError(f"mask weights are {weights.tolist()}: give finite weights >= 0, at least one above 0")

    def probabilities(self, normalize: bool = True) -> np.ndarray:
        """The weights in field order, float64 [kinds], summing to one if `normalize`."""
        weights = np.array([getattr(self, field.name) for field in fields(self)], np.float64)
        return weights / weights.sum() if normalize else weights

    def draw(self, rng: np.random.Generator) -> str:
        """The name of one kind."""
        names = [field.name for field in fields(self)]
        return names[rng.choice(len(names), p=self.probabilities())]


@dataclass(frozen=True)
class MaskMix(_Weights):
    """How often each kind of mask is drawn for a grid."""

    view_and_time: float = 0.30
    """one view at all times and one time in all views, an "L" or a cross"""
    fixed_view: float = 0.15
    """one view at all times"""
    freeze_time: float = 0.10
    """one time in all views"""
    some_views: float = 0.15
    """two to four views at all times"""
    one_cell: float = 0.10
    """a single frame"""
    random_cells: float = 0.10
    """any number of frames anywhere"""
    borders: float = 0.05
    """the ends (first and last) of time or view, the four corners, or a prefix of time or view"""
    none: float = 0.05
    """nothing"""


@dataclass(frozen=True)
class ClipMaskMix(_Weights):
    """How often each kind of mask is drawn for a clip."""

    one_frame: float = 0.35
    """a single frame, the first one half the time"""
    random_frames: float = 0.25
    """any number of frames anywhere"""
    ends: float = 0.10
    """the first and the last frame"""
    prefix: float = 0.10
    """the first frames"""
    none: float = 0.20
    """nothing"""


def sample_given(rng: np.random.Generator, views: int, times: int, mix: MaskMix) -> np.ndarray:
    """Draws the given cells of one grid: bool [views, times], never all True (so all False for a 1x1 grid)."""
    given = np.zeros((views, times), bool)
    match mix.draw(rng):
        case "view_and_time":
            given[_anchor(rng, views), :] = True
            given[:, _anchor(rng, times)] = True
        case "fixed_view":
            given[_anchor(rng, views), :] = True
        case "freeze_time":
            given[:, _anchor(rng, times)] = True
        case "some_views":
            most = min(4, max(views - 1, 1))
            count = rng.integers(min(2, most), most, endpoint=True)
            given[rng.choice(views, count, replace=False), :] = True
        case "one_cell":
            given[_anchor(rng, views), _anchor(rng, times)] = True
        case "random_cells":
            given = _scattered(rng, (views, times))
        case "borders":
            given = _borders(rng, views, times)
    return _scattered(rng, (views, times)) if given.all() else given


def sample_given_clip(rng: np.random.Generator, frames: int, mix: ClipMaskMix | None = None) -> np.ndarray:
    """Draws the given frames of one clip: bool [frames], never all True (so all False for a single image)."""
    given = np.zeros(frames, bool)
    match (mix or ClipMaskMix()).draw(rng):
        case "one_frame":
            given[_anchor(rng, frames)] = True
        case "random_frames":
            given = _scattered(rng, (frames,))
        case "ends":
            given[[0, -1]] = True
        case "prefix":
            given[: _prefix(rng, frames)] = True
    return _scattered(rng, (frames,)) if given.all() else given


def _anchor(rng: np.random.Generator, size: int) -> int:
    """The first position half the time, any position otherwise."""
    return 0 if rng.random() < 0.5 else int(rng.integers(size))


def _prefix(rng: np.random.Generator, size: int) -> int:
    """A length from 1 to size - 1 (1 where size is 1)."""
    return int(rng.integers(1, max(size, 2)))


def _scattered(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A uniform number, from 1 to all but one, of uniformly chosen positions; none where there is only one."""
    size = int(np.prod(shape))
    given = np.zeros(size, bool)
    if size > 1:
        given[rng.choice(size, rng.integers(1, size), replace=False)] = True
    return given.reshape(shape)


def _borders(rng: np.random.Generator, views: int, times: int) -> np.ndarray:
    given = np.zeros((views, times), bool)
    shape = rng.choice(["ends", "corners", "prefix"])
    over_time = rng.random() < 0.5
    if shape == "corners":
        given[np.ix_([0, -1], [0, -1])] = True
    elif over_time:
        given[:, [0, -1] if shape == "ends" else slice(_prefix(rng, times))] = True
    else:
        given[[0, -1] if shape == "ends" else slice(_prefix(rng, views)), :] = True
    return given
