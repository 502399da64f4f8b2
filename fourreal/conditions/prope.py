"""Cameras as relative positions: what any two views see of each other, in attention ("PRoPE", Li et al. 2025).

    x <- x + gate_1 * (SelfAttention(z) + W_out D_i attend(D_i^T q, D^-1 k, D^-1 v)),     z modulated, W_out zero at first

D holds the projection P = [K | 0; 0 1] c2w^-1 of a token's view and the place of its patch, see `nn/projective.py`; q, k and v
are those of the block's own attention (`models/block.py` says why, and what it costs). Of the two cameras attention depends on
P_i P_j^-1 alone. Where cameras are not known P is the identity for all, so the branch knows places in the picture and no views.
Every clip has the branch, also those of one view, whose cameras are equal while a camera stands still.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fourreal import scene
from fourreal.conditions.cameras import Cameras
from fourreal.conditions.condition import Embedded
from fourreal.geometry.rays import projections
from fourreal.grid import Cells, Known


class Projections(nnx.Module):
    """The projections of cameras; without parameters of its own."""

    def __call__(self, cameras: scene.Cameras, cells: Cells, size: tuple[int, int]) -> Embedded:
        pose = projections(cameras, *size)
        if cameras.known is not None:
            pose = jnp.where(cameras.known[:, None, None, None], pose, jnp.eye(4))
        return Embedded(pose=pose[:, :, None])


@dataclasses.dataclass(frozen=True)
class Prope(Cameras):
    """Pinhole cameras as relative positions; their values, options and examples are those of `cameras`."""

    kind = "prope"
    pose = True

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        return Projections()

    def default(self, known: Known) -> scene.Cameras:
        nowhere = jnp.broadcast_to(jnp.eye(4), (*known.mask.shape[:2], 4, 4))
        return self.null(scene.Cameras(nowhere[..., :3, :3], nowhere))
