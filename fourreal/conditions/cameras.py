"""Cameras: where the views stand, as the ray of every pixel in Pluecker coordinates, see `geometry/rays.py`.

tokens <- tokens + Linear(patches(rays)),  zero at first, the same at all times; zeros where cameras are not known
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool

from fourreal import scene
from fourreal.conditions.condition import Condition, Embedded
from fourreal.errors import UserError
from fourreal.geometry.rays import RAY, check_cameras, from_first, plucker_rays
from fourreal.geometry.trajectories import trajectory
from fourreal.grid import Cells, Known, patchify
from fourreal.nn.linear import linear
from fourreal.parallel.layout import FSDP

PATH = tyro.conf.arg(metavar="PATH")


@dataclasses.dataclass(frozen=True)
class CameraOptions:
    """Where the views stand."""

    cameras: Annotated[str | None, PATH] = None
    """transforms.json or COLMAP's folder, paired with pictures by name, for a checkpoint with cameras; none: no test grid's"""
    trajectory: Annotated[str | None, tyro.conf.arg(metavar="NAME[:AMOUNT]")] = None
    """cameras along a path instead: orbit:60 (degrees around the subject), arc:60 (rising too), rise:20, dolly:0.3 (nearer)"""
    fov: float = 40.0
    """field of view of a trajectory's cameras across the picture, in degrees"""
    elevation: float = 20.0
    """how far a trajectory's first camera looks down, in degrees"""


class CameraRays(nnx.Module):
    """A linear map from the patches of rays to tokens."""

    layout: ClassVar[dict[str, P]] = {"embed.kernel": P(None, FSDP), "embed.bias": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, base: Any, *, rngs: nnx.Rngs):
        self.patch, self.scale = base.patch[1], 1
        dtype, zeros = jnp.dtype(base.dtype), nnx.initializers.zeros
        self.embed = linear(RAY * self.patch**2, base.width, dtype=dtype, rngs=rngs, init=zeros)

    def __call__(self, cameras: scene.Cameras, cells: Cells, size: tuple[int, int]) -> Embedded:
        tokens = self.embed(patchify(plucker_rays(cameras, *size), self.patch)).astype(jnp.float32)
        if cameras.known is not None:
            tokens = jnp.where(cameras.known[:, None, None, None], tokens, 0)
        return Embedded(tokens=tokens[:, :, None])


@dataclasses.dataclass(frozen=True)
class Cameras(Condition):
    """Pinhole cameras of the views, which may be unknown. Training draws the camera that is the origin."""

    drop: float = 0.5

    kind = "cameras"
    axes = {"K": "b v", "c2w": "b v", "focus": "b", "known": "b", "reference": "b"}  # noqa: RUF012
    Options = CameraOptions

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        return CameraRays(base, rngs=rngs)

    def filled(self, value: scene.Cameras, known: Known) -> scene.Cameras:
        return value if value.known is not None else value._replace(known=jnp.ones(np.shape(value.K)[:-3], bool))

    def null(self, value: scene.Cameras) -> scene.Cameras:
        return value._replace(known=jnp.zeros(np.shape(value.K)[:-3], bool))

    def example(
        self, scene: scene.Scene, given: Bool[np.ndarray, "v t"], rng: np.random.Generator | None
    ) -> scene.Cameras:
        views = len(given)
        if scene.cameras is None:
            nowhere = np.broadcast_to(np.eye(4, dtype=np.float32), (views, 4, 4))
            return _camera_value(nowhere[:, :3, :3], nowhere, known=False)
        reference = 0 if rng is None else int(rng.integers(views))
        return _camera_value(scene.cameras.K, scene.cameras.c2w, reference=reference)

    def check(self, value: scene.Cameras, views: int, times: int) -> scene.Cameras:
        check_cameras(value, views)
        value = scene.Cameras(*value)
        value = value._replace(c2w=from_first(value.c2w))
        types = scene.Cameras(np.float32, np.float32, np.float32, bool, np.int32)
        value = scene.Cameras(*(v if v is None else np.asarray(v, kind) for v, kind in zip(value, types, strict=True)))
        if value.reference is not None and not 0 <= value.reference < views:
            raise UserError(f"cameras: reference is {value.reference}: expected a view from 0 to {views - 1}")
        return value

    @classmethod
    def check_options(cls, options: CameraOptions) -> str:
        if options.cameras is not None and options.trajectory is not None:
            raise UserError("--cameras and --trajectory both say where the cameras are: give one")
        fresh = CameraOptions()
        if options.trajectory is None and (options.fov, options.elevation) != (fresh.fov, fresh.elevation):
            raise UserError("--fov and --elevation describe the cameras of a trajectory: add --trajectory, as orbit:60")
        return "--trajectory" if options.trajectory else "" if options.cameras in (None, "none") else "--cameras"

    def from_options(self, options: CameraOptions, inputs: Any) -> tuple[scene.Cameras | None, str]:
        views, _, *size, _ = inputs.frames.shape
        if options.trajectory is not None:
            found = trajectory(options.trajectory, views, tuple(size), options.fov, options.elevation)
            return found, f", cameras: {options.trajectory}"
        if options.cameras == "none" or inputs.K is None or inputs.c2w is None:
            return None, ""
        said = ", with its cameras" if options.cameras is None else f", cameras: {options.cameras}"
        return scene.Cameras(inputs.K, inputs.c2w, None if inputs.focus is None else np.float32(inputs.focus)), said


def camera_names(listed: Sequence[Condition]) -> tuple[str, ...]:
    """The names of the conditions that are told cameras, which may be several."""
    return tuple(condition.name for condition in listed if isinstance(condition, Cameras))


def _camera_value(K: np.ndarray, c2w: np.ndarray, *, known: bool = True, reference: int = 0) -> scene.Cameras:
    return scene.Cameras(
        np.asarray(K, np.float32), np.asarray(c2w, np.float32), known=np.array(known), reference=np.int32(reference)
    )
