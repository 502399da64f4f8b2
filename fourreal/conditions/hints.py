"""Hints: for every cell the nearest given frame of its own view and of its own time, as pictures (ours, not the papers').

    tokens <- tokens + Linear(patches(hints)),  zero at first; an x0-model may also copy from them, see `models/video_dit.py`

A view (or time) without a given frame borrows the pictures of the nearest one that has any; their validity is then 0. With
`moved`, two more pictures a cell: given frames moved to where they should be, by `motion/moved.py`, which the host makes. Their
last channel says how far to trust them. A hole shows the nearest given frame of the view, and a cell that nothing can be moved
to the two unmoved pictures again. A caller may pass other pictures, a warped rendering, say.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from fourreal.conditions.condition import Condition, Embedded
from fourreal.errors import UserError
from fourreal.grid import Cells, Known, patchify, to_unit
from fourreal.nn.linear import linear
from fourreal.parallel.activations import existing, swap_view_time
from fourreal.parallel.layout import FSDP
from fourreal.scene import Scene

NEAREST = 2  # the nearest given frame of the same view, and of the same time
MOVED = 2  # given frames that motion carries here


class MovedFrames(NamedTuple):
    """What the host makes of the given frames, see `motion/moved.py`."""

    pictures: UInt8[Array, "*b v t 2 h w 4"]
    """pixels, and how far to trust them; 0: nothing is there"""
    found: Bool[Array, "*b v t"]
    """cells that something could be moved to"""


class HintPatches(nnx.Module):
    """A linear map from the patches of all hints of a cell to its tokens."""

    layout: ClassVar[dict[str, P]] = {"embed.kernel": P(None, FSDP), "embed.bias": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, base: Any, pictures: int, *, rngs: nnx.Rngs):
        self.patch = base.patch[1]
        size = pictures * self.patch**2 * (base.channels + 1)
        self.embed = linear(size, base.width, dtype=jnp.dtype(base.dtype), rngs=rngs, init=nnx.initializers.zeros)

    def __call__(self, hints: Float[Array, "b v t k h w c+1"], cells: Cells, size: tuple[int, int]) -> Embedded:
        tokens = self.embed(rearrange(patchify(hints, self.patch), "... n s k -> ... s (n k)"))
        return Embedded(tokens=tokens, pictures=hints)


@dataclasses.dataclass(frozen=True)
class Hints(Condition):
    """The nearest given frames as pictures."""

    moved: bool = False
    """also given frames moved along optical flow; the model works on pixels then"""

    kind = "hints"
    axes = dict.fromkeys(("", *MovedFrames._fields), "b v t")
    from_given = True

    @property
    def pictures(self) -> int:
        """Of a cell."""
        return NEAREST + MOVED * self.moved

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        if self.moved and base.channels != 3:
            raise UserError(f"hints that move are pixels, and the model has {base.channels} channels: leave moved out")
        return HintPatches(base, self.pictures, rngs=rngs)

    def check(self, value: Any, views: int, times: int) -> Float[np.ndarray, "v t k h w c+1"] | MovedFrames:
        if isinstance(value, MovedFrames):
            shape = value.pictures.shape[:3]
            if not self.moved or shape != (views, times, MOVED) or value.found.shape != (views, times):
                takes = f"[{views}, {times}, {MOVED}, h, w, 4]" if self.moved else "none, its hints do not move"
                raise UserError(f"moved hints are {list(value.pictures.shape)}: this model takes {takes}")
            return value
        value = np.asarray(value, np.float32)
        if value.ndim != 6 or value.shape[:3] != (views, times, self.pictures):
            raise UserError(
                f"hints are {list(value.shape)}: expected [{views}, {times}, {self.pictures}, h, w, channels + 1]"
            )
        return value

    def example(
        self, scene: Scene, given: Bool[np.ndarray, "v t"], rng: np.random.Generator | None
    ) -> MovedFrames | None:
        return self.from_frames(scene.frames, given, scene.valid)

    def from_frames(
        self,
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
        valid: Bool[np.ndarray, "v t h w"] | None = None,
    ) -> MovedFrames | None:
        if not self.moved:
            return None
        if frames.dtype != np.uint8:
            raise UserError(f"hints that move are made of uint8 pixels, not of {frames.dtype}: leave moved out")
        from fourreal.motion.moved import moved_frames  # with OpenCV

        pictures = np.zeros((*given.shape, MOVED, *frames.shape[2:4], 4), np.uint8)
        found = np.zeros(given.shape, bool)
        for cell, moved in moved_frames(frames, given, valid).items():
            pictures[cell], found[cell] = moved, True
        return MovedFrames(pictures, found)

    def shapes(self, scene: Scene, given: Bool[np.ndarray, "v t"]) -> MovedFrames | None:
        return self.from_frames(scene.frames, np.zeros_like(given))  # nothing given: nothing to move

    def filled(self, value: Any, known: Known) -> Float[Array, "b v t k h w c+1"]:
        if not isinstance(value, MovedFrames):
            return value
        nearest = grid_hints(known.frames, known.mask, known.valid)
        trust = value.pictures[..., 3:].astype(jnp.float32) / 255
        pixels = jnp.where(trust > 0, to_unit(value.pictures[..., :3]), nearest[..., :1, :, :, :3])
        moved = jnp.concatenate([pixels, trust], axis=-1)
        moved = jnp.where(value.found[..., None, None, None, None], moved, nearest)
        return jnp.concatenate([nearest, moved], axis=3)

    def default(self, known: Known) -> Float[Array, "b v t 2 h w c+1"]:
        if self.moved:
            raise UserError(
                "hints that move are made outside the model: pass conditions={'hints': Hints(moved=True).from_frames(frames, "
                "given)}, each array with a batch axis"
            )
        return grid_hints(known.frames, known.mask, known.valid)


def nearest_given(given: Bool[Array, "*lead f"]) -> tuple[Int[Array, "*lead f"], Bool[Array, "*lead 1"]]:
    """For each frame of a clip, the index of the nearest given one (the earlier of two), and whether there is any."""
    frames = given.shape[-1]
    distance = jnp.abs(jnp.arange(frames)[:, None] - jnp.arange(frames))
    distance = jnp.where(given[..., None, :], distance, frames)
    return jnp.argmin(distance, axis=-1), jnp.any(given, axis=-1, keepdims=True)


def clip_hints(
    clip: Float[Array, "*lead f h w c"],
    given: Bool[Array, "*lead f"],
    valid: Bool[Array, "*lead f h w"] | None = None,
) -> Float[Array, "*lead f h w c+1"]:
    """The nearest given frame of the clip for each of its frames; last channel 1 where valid, all zeros where there is none."""
    index, exists = nearest_given(given)
    at = index[..., None, None, None]
    picture = jnp.take_along_axis(clip, at, axis=-4)
    flag = jnp.ones_like(picture[..., :1])
    if valid is not None:
        flag = jnp.take_along_axis(valid[..., None].astype(clip.dtype), at, axis=-4)
    return jnp.where(exists[..., None, None, None], jnp.concatenate([picture, flag], axis=-1), 0)


def grid_hints(
    grid: Float[Array, "b v t h w c"], given: Bool[Array, "b v t"], valid: Bool[Array, "b v t h w"] | None = None
) -> Float[Array, "b v t 2 h w c+1"]:
    """For each cell, the nearest given frames of its own view (0) and of its own time (1); last channel 1 where valid."""
    turned = (swap_view_time(grid), swap_view_time(given), None if valid is None else swap_view_time(valid))
    views, times = grid.shape[1:3]
    of_time = existing(swap_view_time(_with_borrowed(*turned), times), views)
    return jnp.stack([_with_borrowed(grid, given, valid), of_time], axis=3)


def _with_borrowed(
    clips: Float[Array, "b n f h w c"], given: Bool[Array, "b n f"], valid: Bool[Array, "b n f h w"] | None
) -> Float[Array, "b n f h w c+1"]:
    """`clip_hints` of every clip; one without a given frame has the pictures of the nearest that has one, not the flag."""
    hints = clip_hints(clips, given, valid)
    lender, _ = nearest_given(jnp.any(given, axis=-1))
    pictures = jnp.take_along_axis(hints[..., :-1], lender[..., None, None, None, None], axis=1)
    return jnp.concatenate([pictures, hints[..., -1:]], axis=-1)
