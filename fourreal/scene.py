"""The types that scenes and inputs come in: cameras, cuts, scenes. NumPy arrays where they are read, JAX arrays in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from fourreal.errors import UserError

if TYPE_CHECKING:  # it would import JAX, which processes that render or read do without
    from jaxtyping import Array


class Cameras(NamedTuple):
    """Pinhole cameras of the views of a grid, OpenCV: x right, y down, z forward."""

    K: Float[Array, "*b v 3 3"]
    """intrinsics in pixels of the model's frames; pixel (0, 0) covers [0, 1] x [0, 1]"""
    c2w: Float[Array, "*b v 4 4"]
    """camera to world, in any world and unit"""
    focus: Float[Array, "*b"] | None = None
    """distance from the reference camera to what it looks at, in the poses' unit; None: from the poses"""
    known: Bool[Array, "*b"] | None = None
    """examples whose cameras the model may see; None: all"""
    reference: Int[Array, "*b"] | None = None
    """the view whose camera is the origin; None: the first"""


class Cut(NamedTuple):
    """Which views and times of a stored scene are wanted, in this order."""

    views: Int[np.ndarray, " v"]
    times: Int[np.ndarray, " t"]


class Scene(NamedTuple):
    """A grid of a scene, as a source reads it."""

    frames: Shaped[np.ndarray, "v t h w c"]
    """uint8 pixels, or latents of the config's codec, float16 or float32"""
    index: int = 0
    """its place in the source"""
    exists: Bool[np.ndarray, "v t"] | None = None
    """cells that were recorded; None: all"""
    valid: Bool[np.ndarray, "v t h w"] | None = None
    """pixels that hold what they should; None: all"""
    cameras: Cameras | None = None
    """one a view"""
    text: Float[np.ndarray, "l k"] | None = None
    """embedded prompt"""
    more: Mapping[str, Any] = {}
    """what else the source knows, by name, for the conditions that ask for it"""


class Deferred(Mapping[str, Any]):
    """Values by name, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]):
        self._makers, self._made = dict(makers), {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def box_means(x: Shaped[np.ndarray, "v t h w *c"], boxes: int) -> Float[np.ndarray, "v t y x *c"]:
    """The means over boxes of so many pixels a side. Raises UserError where they do not divide the frames."""
    views, times, height, width, *channels = x.shape
    if height % boxes or width % boxes:
        raise UserError(f"frames of {height} x {width}: boxes of {boxes} pixels a side do not divide them")
    import cv2  # many times as fast as a mean over axes

    means = np.empty((views, times, height // boxes, width // boxes, *channels), np.float32)
    for cell in np.ndindex(views, times):
        mean = cv2.resize(x[cell].astype(np.float32), means.shape[3:1:-1], interpolation=cv2.INTER_AREA)
        means[cell] = mean.reshape(means.shape[2:])  # one channel comes without its axis
    return means


def reduced_frames(frames: UInt8[np.ndarray, "v t h w 3"], boxes: int) -> UInt8[np.ndarray, "v t y x 3"]:
    """The same of pixels, rounded."""
    return frames if boxes == 1 else np.rint(box_means(frames, boxes)).astype(np.uint8)


def reduced_cameras(cameras: Cameras, boxes: int) -> Cameras:
    """The cameras of frames so reduced: intrinsics are in pixels, and pixel (0, 0) begins at 0."""
    return cameras._replace(K=np.diag(np.float32([1 / boxes, 1 / boxes, 1])) @ cameras.K)
