"""The types that scenes and inputs come in: cameras, cuts, scenes. NumPy arrays where they are read, JAX arrays in a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

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
    """uint8 pixels, or float32 latents of the config's codec"""
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
