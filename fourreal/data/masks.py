"""Which cells of a grid are given to the model during training; a clip is a grid of one view or one time.

One kind of mask is drawn per example with the weights of a mix; the mix covers what users ask for: a video and a photo
orbit ("L": one view at all times and one time in all views), one video, one orbit, a few synchronised cameras, one
picture, scattered pictures. The given view and time are the first ones half the time and uniformly random otherwise, so
the model knows L-shapes, videos and orbits at any place. Missing cells are never given. Never is every cell given that
exists: a loss over unknown cells would be empty. Such a draw becomes one of scattered cells.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from fourreal.errors import UserError


class _Weights:
    """Weights of the kinds of masks: not negative, not all zero; they need not sum to one."""

    def __post_init__(self):
        weights = self.probabilities(normalize=False)
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
            raise UserError(f"mask weights are {weights.tolist()}: give finite weights >= 0, at least one above 0")

    def probabilities(self, normalize: bool = True) -> np.ndarray:
        """The weights in field order, float64 [kinds], summing to one if `normalize`."""
        weights = np.array([getattr(self, field.name) for field in fields(self)], np.float64)
        return weights / weights.sum() if normalize else weights

    def alone(self) -> dict[str, Self]:
        """Each kind that is drawn at all, by itself."""
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: type(self)(**{each: float(each == name) for each in weights}) for name in weights if weights[name]
        }

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
class CutMix(_Weights):
    """How often each kind of grid is cut from a scene."""

    grid: float = 1.0
    """views and times"""
    fixed_view: float = 0.0
    """one view at all times"""
    freeze_time: float = 0.0
    """one time in all views"""
    image: float = 0.0
    """single frames"""


CLIPS = CutMix(grid=0.0, fixed_view=0.45, freeze_time=0.45, image=0.1)  # for a base


def sample_given(
    rng: np.random.Generator, views: int, times: int, mix: MaskMix, exists: np.ndarray | None = None
) -> np.ndarray:
    """Draws the given cells of one grid: bool [views, times], of those that exist (None: all), never all of these."""
    exists = np.ones((views, times), bool) if exists is None else exists
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
            given = _scattered(rng, exists)
        case "borders":
            given = _borders(rng, views, times)
    given &= exists
    return given if (exists & ~given).any() else _scattered(rng, exists)


def _anchor(rng: np.random.Generator, size: int) -> int:
    """The first position half the time, any position otherwise."""
    return 0 if rng.random() < 0.5 else int(rng.integers(size))


def _prefix(rng: np.random.Generator, size: int) -> int:
    """A length from 1 to size - 1 (1 where size is 1)."""
    return int(rng.integers(1, max(size, 2)))


def _scattered(rng: np.random.Generator, exists: np.ndarray) -> np.ndarray:
    """A uniform number, from 1 to all but one, of uniformly chosen cells that exist; none where there is only one."""
    given, places = np.zeros(exists.size, bool), np.flatnonzero(exists)
    if len(places) > 1:
        given[rng.choice(places, rng.integers(1, len(places)), replace=False)] = True
    return given.reshape(exists.shape)


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
