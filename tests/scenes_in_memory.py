"""Sources and a codec of tests: scenes in memory, so that a run needs no data set on disk, and a codec that merges times.

A process that is to read a config with them imports this module first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from fourreal.codecs import Codec
from fourreal.data.source import Source
from fourreal.errors import UserError
from fourreal.grid import to_uint8, to_unit
from fourreal.scene import Cameras, Cut, Scene


class InMemory:
    """The scenes of a split, cut from a list; scene i has index i."""

    def __init__(self, scenes: Sequence[Scene], fingerprint: str = "in memory"):
        self.scenes, self.fingerprint = scenes, fingerprint
        self.partial = any(scene.exists is not None or scene.valid is not None for scene in scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def shape(self, i: int) -> tuple[int, int, int, int]:
        return self.scenes[i].frames.shape[:4]

    def read(self, i: int, cut: Cut) -> Scene:
        scene, cells = self.scenes[i], np.ix_(*cut)
        cameras = scene.cameras and Cameras(scene.cameras.K[cut.views], scene.cameras.c2w[cut.views])
        exists, valid = (None if array is None else array[cells] for array in (scene.exists, scene.valid))
        return scene._replace(frames=scene.frames[cells], index=i, cameras=cameras, exists=exists, valid=valid)


@dataclass(frozen=True)
class Noise(Source):
    """Scenes of 3 views and 4 times whose pixels are random."""

    scenes: int = 5
    size: tuple[int, int] = (4, 4)
    seed: int = 0
    missing: bool = False
    """the last cell of every scene, and the first row of pixels of every other"""
    latents: bool = False

    kind = "test_noise"

    def open(self, split: str) -> InMemory:
        rng = np.random.default_rng(self.seed)
        return InMemory([self._scene(rng) for _ in range(self.scenes)], f"noise of seed {self.seed}")

    def _scene(self, rng: np.random.Generator) -> Scene:
        frames = rng.integers(0, 256, (3, 4, *self.size, 3), np.uint8)
        exists = valid = None
        if self.missing:
            exists, valid = np.ones(frames.shape[:2], bool), np.ones(frames.shape[:4], bool)
            exists[-1, -1] = valid[:, :, 0] = False
        if self.latents:
            frames = frames / np.float32(127.5) - 1
        cameras = Cameras(
            np.tile(np.eye(3, dtype=np.float32), (3, 1, 1)), np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
        )
        return Scene(
            frames, exists=exists, valid=valid, cameras=cameras, text=rng.normal(size=(2, 5)).astype(np.float32)
        )


@dataclass(frozen=True)
class Pooling(Codec):
    """Means over two times and 2 x 2 pixels, scaled by its one parameter."""

    kind = "test_pooling"
    factors = (2, 2, 2)

    def parameters(self) -> dict[str, np.ndarray]:
        return {"scale": np.float32(0.5)}

    def groups(self, times: int) -> list[range]:
        if times % 2:
            raise UserError(f"{times} times: give an even number")
        return [range(t, t + 2) for t in range(0, times, 2)]

    def encode(self, parameters: dict, frames: jax.Array) -> jax.Array:
        pattern = "b v (u k) (y p) (x q) c -> b v u y x c"
        return parameters["scale"] * reduce(to_unit(frames), pattern, "mean", k=2, p=2, q=2)

    def decode(self, parameters: dict, latents: jax.Array) -> jax.Array:
        cells = jnp.broadcast_to((latents / parameters["scale"])[..., None], (*latents.shape, 8))
        return to_uint8(rearrange(cells, "b v u y x c (k p q) -> b v (u k) (y p) (x q) c", k=2, p=2, q=2))
