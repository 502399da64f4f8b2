"""Shift and roll: grids that no axis alone determines, drawn from a seed. A benchmark of what the two axes tell each other.

A scene is a few textured layers on a torus, the first behind the others. View v shifts layer k by depth_k s(v) along x, time t
rolls it by m_k(t) along y; every s(v) and m_k(t) is drawn independently, uniform on the torus in steps of `unit` pixels.

    plain     one layer that both shift and roll
    sprites   a background that stands still in time, and before it two sprites of their own depths, motions and colours,
              so that one frame tells whose a pixel is

With view 0 and time 0 given, cell (v, t) follows from x[0,0], x[v,0] and x[0,t] together (texture that none of them shows
aside) and from none of them alone. x[0,t] tells m(t) and nothing of s(v); x[v,0] the other way round. So what either can tell
of the cell is known: with the layers known (which can only raise it), F(s, m) the cell and means over all shifts and rolls,

    from x[0,t]   E_s F        from x[v,0]   E_m F        average   (E_s F + E_m F) / 2        best sum   E_s F + E_m F - E F

are the posterior means and the best that a sum of a function of each can do: what two streams that never meet reach with the
mean of their heads when each is trained for itself (average), and when the mean is (best sum).
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fourreal.data.source import Source
from fourreal.errors import UserError
from fourreal.scene import Cut, Scene

SPLITS = {"train": 1_000_000, "validation": 1000, "test": 1000}  # scenes; the sizes cost nothing
BLOCK = 2  # pixels of a texture's squares of one colour
DEPTHS = {"plain": (1,), "sprites": (1, 2, 3)}
WITHOUT = (0, 1, 2)  # the channel, of red, green and blue, that a layer of "sprites" has none of
MOST_ROLLS = 2**12  # of all layers together, for the floors


class Layers(NamedTuple):
    """What a scene is made of, the first layer behind the others."""

    texture: UInt8[np.ndarray, "k n n 3"]
    mask: Bool[np.ndarray, "k n n"]
    """where a layer covers those behind it"""
    shift: Int[np.ndarray, "v"]
    """of every view, in pixels to the right, at depth 1"""
    roll: Int[np.ndarray, "k t"]
    """of every layer at every time, in pixels down"""


@dataclass(frozen=True)
class ShiftAndRoll(Source):
    """Textures that views shift and times roll."""

    kind: ClassVar[str] = "shift_and_roll"

    form: Literal["plain", "sprites"] = "plain"
    """one texture, or a background with two sprites"""
    views: int = 3
    """of a grid"""
    times: int = 3
    """of a grid"""
    size: int = 16
    """height and width of a frame"""
    unit: int = 4
    """shifts and rolls are multiples of so many pixels"""
    seed: int = 0
    """of all scenes"""

    def __post_init__(self):
        if self.form not in DEPTHS:
            raise UserError(f"shift_and_roll: form is '{self.form}': expected {' or '.join(DEPTHS)}")
        for name in ("views", "times", "size", "unit"):
            if not 1 <= getattr(self, name) <= 1024:
                raise UserError(f"shift_and_roll: {name} is {getattr(self, name)}: give 1 to 1024")
        if self.seed < 0:
            raise UserError(f"shift_and_roll: seed is {self.seed}: give 0 or more")
        if self.size % (2 * BLOCK) or self.size % self.unit:
            raise UserError(
                f"shift_and_roll: size {self.size}, unit {self.unit}: give a size that {2 * BLOCK} and the unit divide"
            )

    def open(self, split: str) -> "ShiftAndRollScenes":
        """The scenes of a split. Raises UserError for a split that there is not."""
        if split not in SPLITS:
            raise UserError(f"shift_and_roll has no split '{split}': it has {', '.join(SPLITS)}")
        return ShiftAndRollScenes(self, split)


class ShiftAndRollScenes:
    """The scenes of a split, made when they are read; nothing is kept."""

    partial = False

    def __init__(self, source: ShiftAndRoll, split: str):
        self.source, self.split = source, split
        self.fingerprint = f"{source.to_text()} {split}"

    def __len__(self) -> int:
        return SPLITS[self.split]

    def shape(self, i: int) -> tuple[int, int, int, int]:
        """(views, times, height, width), the same of all scenes."""
        return self.source.views, self.source.times, self.source.size, self.source.size

    def read(self, i: int, cut: Cut) -> Scene:
        """The cut of scene `i`; `more` has `subject` [v t h w], the pixels of the sprites, where the form has some."""
        layers = self.layers(i)
        frames, top = self._draw(layers, layers.shift[cut.views], layers.roll[:, cut.times])
        return Scene(frames, i, more={"subject": top > 0} if len(layers.texture) > 1 else {})

    def floors(self, i: int, cut: Cut) -> dict[str, Float[np.ndarray, "v t h w 3"]]:
        """By name, what x[0,t] and x[v,0] tell of every cell, see the head of this file; in levels from 0 to 255.

        Raises UserError where there are too many rolls to take the mean over.
        """
        layers, rolling = self.layers(i), self._rolling()
        steps = self.source.unit * np.arange(self.source.size // self.source.unit)
        if len(steps) ** len(rolling) > MOST_ROLLS:
            raise UserError(f"shift_and_roll: the floors need {len(steps) ** len(rolling)} rolls: give a larger unit")
        all_rolls = np.zeros((len(layers.texture), len(steps) ** len(rolling)), int)
        all_rolls[rolling] = np.array(list(itertools.product(steps, repeat=len(rolling)))).T
        shift, roll = layers.shift[cut.views], layers.roll[:, cut.times]
        own_time = self._draw(layers, steps, roll)[0].mean(0)[None]
        own_view = self._draw(layers, shift, all_rolls)[0].mean(1)[:, None]
        whole = np.mean([self._draw(layers, steps[s : s + 1], all_rolls)[0].mean((0, 1)) for s in range(len(steps))], 0)
        told = {
            "x[0,t] alone": own_time,
            "x[v,0] alone": own_view,
            "average of both": (own_time + own_view) / 2,
            "best sum of both": own_time + own_view - whole,
        }
        shape = (len(shift), roll.shape[1], *whole.shape)
        return {name: np.broadcast_to(frames, shape).clip(0, 255) for name, frames in told.items()}

    def layers(self, i: int) -> Layers:
        """What scene `i` is made of."""
        source = self.source
        if not 0 <= i < len(self):
            raise IndexError(f"shift_and_roll has {len(self)} scenes in {self.split}, not {i}")
        rng = np.random.default_rng((source.seed, list(SPLITS).index(self.split), i))
        count, size, steps = len(DEPTHS[source.form]), source.size, source.size // source.unit
        small = rng.integers(256, size=(count, size // BLOCK, size // BLOCK, 3), dtype=np.uint8)
        if count > 1:
            small[range(count), ..., WITHOUT] = 0
        texture = small.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
        mask = np.ones((count, size, size), bool)
        for sprite in range(1, count):  # a square of half the side, anywhere on the torus
            square = np.zeros((size, size), bool)
            square[: size // 2, : size // 2] = True
            mask[sprite] = np.roll(square, source.unit * rng.integers(steps, size=2), axis=(0, 1))
        shift = source.unit * rng.integers(steps, size=source.views)
        roll = np.zeros((count, source.times), int)
        roll[self._rolling()] = source.unit * rng.integers(steps, size=(len(self._rolling()), source.times))
        return Layers(texture, mask, shift, roll)

    def _rolling(self) -> list[int]:
        """The layers that move in time."""
        count = len(DEPTHS[self.source.form])
        return list(range(1, count)) if count > 1 else [0]

    def _draw(self, layers: Layers, shift: np.ndarray, roll: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(frames uint8 [v t h w 3], the number of the layer seen at every pixel) at shifts [v] and rolls [k t]."""
        pixels = np.arange(self.source.size)
        frames = np.zeros((len(shift), roll.shape[1], len(pixels), len(pixels), 3), np.uint8)
        top = np.zeros(frames.shape[:-1], int)
        for k, depth in enumerate(DEPTHS[self.source.form]):
            y = (pixels - roll[k][:, None])[None, :, :, None] % len(pixels)
            x = (pixels - depth * shift[:, None])[:, None, None, :] % len(pixels)
            seen = layers.mask[k][y, x]
            frames = np.where(seen[..., None], layers.texture[k][y, x], frames)
            top = np.where(seen, k, top)
        return frames, top
