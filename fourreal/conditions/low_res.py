"""Low resolution: the whole grid at fewer pixels, which an upsampler makes large (a cascade's second stage).

    tokens <- tokens + Linear(patches(enlarged)),     six <- six + level * table,     both zero at first

The enlarged frames are also pictures to copy from, with gates that begin at 1: so the network says what they lack. Training
blurs what it is told with noise, (1 - level) frames + level eps with a level of its own for every example, so that the
upsampler mends what a stage before it gets wrong and does not believe it to the pixel (Ho et al. 2021); sampling tells
`sampled` of it. With `soft`, cells that are not given also lose their edges in half of the examples, as they do where a stage
before was in doubt.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from fourreal.conditions.condition import Condition, Embedded
from fourreal.errors import UserError
from fourreal.grid import Cells, Known, patchify
from fourreal.nn.linear import linear
from fourreal.parallel.layout import FSDP
from fourreal.scene import Scene, box_means


class LowResFrames(NamedTuple):
    """All frames of a grid at low resolution."""

    frames: Float[Array, "*b v t y x c"]
    """in [-1, 1], blurred with noise"""
    level: Float[Array, "*b"]
    """of that noise"""


class LowResPatches(nnx.Module):
    """A linear map from the patches of the enlarged frames to tokens, and a table of what the level adds to the modulation."""

    layout: ClassVar[dict[str, P]] = {"embed.kernel": P(None, FSDP), "embed.bias": P(), "table": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, base: Any, factor: int, *, rngs: nnx.Rngs):
        self.patch, self.factor = base.patch[1], factor
        size = self.patch**2 * base.channels
        self.embed = linear(size, base.width, dtype=jnp.dtype(base.dtype), rngs=rngs, init=nnx.initializers.zeros)
        self.table = nnx.Param(jnp.zeros((6, base.width)))

    def __call__(self, value: LowResFrames, cells: Cells, size: tuple[int, int]) -> Embedded:
        *lead, height, width, channels = value.frames.shape
        if (height * self.factor, width * self.factor) != tuple(size):
            raise UserError(
                f"low_res frames are {height} x {width}: expected a {self.factor}th of the {size[0]} x {size[1]} pixels"
            )
        enlarged = jax.image.resize(value.frames, (*lead, *size, channels), "cubic")
        pictures = jnp.concatenate([enlarged, jnp.ones_like(enlarged[..., :1])], axis=-1)
        return Embedded(
            tokens=self.embed(patchify(enlarged, self.patch)),
            six=value.level[:, None, None, None, None] * self.table[...],
            pictures=pictures[..., None, :, :, :],
        )


@dataclasses.dataclass(frozen=True)
class LowRes(Condition):
    """The whole grid at a part of its pixels."""

    factor: int = 4
    """pixels a side for one of the low resolution"""
    noise: float = 0.3
    """training draws the level of the noise from 0 to this"""
    sampled: float = 0.1
    """the level in sampling and evaluation"""
    soft: float = 0.0
    """training softens unknown cells by a Gaussian of up to so many pixels of the low resolution, in half of the examples"""

    kind = "low_res"
    axes = {"frames": "b v t", "level": "b"}  # noqa: RUF012
    pictures = 1
    copied = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not (1 <= self.factor <= 64 and 0 <= self.sampled <= self.noise < 1 and 0 <= self.soft <= 64):
            raise UserError(
                f"low_res: factor {self.factor}, noise {self.noise}, sampled {self.sampled}, soft {self.soft}: give a factor "
                "from 1 to 64, levels 0 <= sampled <= noise < 1 and soft from 0 to 64"
            )

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        return LowResPatches(base, self.factor, rngs=rngs)

    def default(self, known: Known) -> None:
        raise UserError("this model enlarges frames of low resolution: pass conditions={'low_res': ...}")

    def blurred(
        self, frames: Float[np.ndarray, "v t y x c"], noise: Float[np.ndarray, "v t y x c"], level: float
    ) -> LowResFrames:
        """The value of frames in [-1, 1] at a level of the noise."""
        mixed = (1 - level) * frames + level * noise
        return LowResFrames(mixed.astype(np.float32), np.float32(level))

    def example(self, scene: Scene, given: Bool[np.ndarray, "v t"], rng: np.random.Generator | None) -> LowResFrames:
        if scene.frames.dtype != np.uint8:
            raise UserError(f"low_res is made of uint8 pixels, not of {scene.frames.dtype}: leave it out")
        small = box_means(scene.frames, self.factor)
        level = self.sampled if rng is None else rng.uniform(0, self.noise)
        if rng is not None and self.soft and rng.random() < 0.5:
            import cv2

            deviation = self.soft * (1 - rng.random())  # above 0
            for cell in np.argwhere(~given):
                small[*cell] = cv2.GaussianBlur(small[*cell], (0, 0), deviation)
        rng = np.random.default_rng(scene.index) if rng is None else rng
        return self.blurred(small / np.float32(127.5) - 1, rng.standard_normal(small.shape, np.float32), level)

    def check(self, value: Any, views: int, times: int) -> LowResFrames:
        """A `LowResFrames`, or uint8 frames, which are taken as they are."""
        if isinstance(value, LowResFrames):
            return value
        value = np.asarray(value)
        if value.dtype != np.uint8 or value.ndim != 5 or value.shape[:2] != (views, times):
            raise UserError(f"low_res is {value.dtype} {list(value.shape)}: expected uint8 [{views}, {times}, h, w, 3]")
        return self.blurred(value / np.float32(127.5) - 1, np.zeros(value.shape, np.float32), 0.0)
