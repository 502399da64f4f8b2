"""One call of a model: the grid embedded, its streams run through all layers by the fusion, a head for every stream."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from fourreal.conditions.condition import Conditions, complete, embed
from fourreal.errors import UserError
from fourreal.grid import Cells, Known, all_cells, cell_sigma
from fourreal.models.fusions.fusion import Fusion, Probe, Run
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig
from fourreal.parallel.activations import check_grid, existing, fill_up, place
from fourreal.parallel.layout import gather


@dataclasses.dataclass(frozen=True)
class Result:
    """What the streams say of a grid."""

    base: VideoDiT
    frames: Float[Array, "b v t h w c"]
    sigma: Float[Array, "b v t"]
    pictures: Float[Array, "b v t k h w c+1"] | None
    heads: dict[str, Float[Array, "b v t s k"]]
    """by the stream's name"""
    observed: Any
    """what the probe observed, with a leading layer axis"""

    def decode(self, head: Float[Array, "b v t s k"]) -> Float[Array, "b v t h w c"]:
        """Frames of a head, or of a mean of heads."""
        return self.base.decode(head, self.frames, self.sigma, self.pictures)


def run_grid(
    base: VideoDiT,
    fusion: Fusion,
    sync: nnx.Module | None,
    projection: nnx.Module | None,
    grid: Float[Array, "b v t h w c"],
    sigma: Float[Array, ""] | Float[Array, "b"] | Float[Array, "b v t"],
    given: Bool[Array, "b v t"] | None,
    conditions: Conditions,
    cells: Cells | None = None,
    probe: Probe = Probe(),
    readout: str = "mean",
) -> Result:
    """Runs a grid through a base's layers; see `GridDiT.__call__` for the arguments. Raises UserError for what does not fit."""
    check_inputs(grid, sigma, given, base.config)
    lead, shape = fusion.lead, grid.shape[:3]
    check_grid(*shape[1:], base.config.heads, lead)
    base, projection = gather(base), gather(projection)
    given = jnp.zeros(shape, bool) if given is None else jnp.asarray(given)
    grid, given = place(jnp.asarray(grid), lead), place(given, lead)
    sigma = cell_sigma(sigma, given)
    cells = all_cells(*shape[1:]) if cells is None else cells
    size = grid.shape[3:5]
    conditions = complete(base.config.conditions, conditions, Known(grid, given))
    told = embed(base.conditions, conditions, cells, size)

    x = base.embed(grid, given)
    temb, six = base.modulation(sigma, lead)
    for each in told.values():
        x = x if each.tokens is None else x + each.tokens
        six = six if each.six is None else six + each.six
    cross = {name: each.cross for name, each in told.items() if each.cross is not None}
    poses = {name: jnp.broadcast_to(each.pose, (*shape, 4, 4)) for name, each in told.items() if each.pose is not None}
    poses = {name: base.projective(place(pose, lead), size) for name, pose in poses.items()}
    pictures = [each.pictures for each in told.values() if each.pictures is not None]
    if lead == 2:
        x, temb, six = map(fill_up, (x, temb, six))
        poses = {name: pose.arranged(fill_up) for name, pose in poses.items()}
    shift_scale = None if projection is None else projection(temb)
    run = Run(base, temb, six, cells, size, cross, shift_scale, probe, readout, poses=poses)
    run = dataclasses.replace(run, shared=fusion.prepare(run))

    def layer(carry: Any, number: jax.Array | None, block: nnx.Module, sync: nnx.Module | None) -> tuple[Any, Any]:
        return fusion.layer(carry, block, sync, dataclasses.replace(run, layer=number))

    numbers = jnp.arange(base.config.depth) if probe.exchange is not None or fusion.numbered else None
    carry, observed = base.run_layers(layer, fusion.start(x, run), (numbers, base.blocks, sync))
    heads = {name: existing(head, shape[1]) for name, head in fusion.finish(carry, run).items()}
    return Result(base, grid, sigma, jnp.concatenate(pictures, axis=3) if pictures else None, heads, observed)


def check_inputs(grid: Any, sigma: Any, given: Any, config: VideoDiTConfig) -> None:
    """Raises UserError for frames, noise levels or masks of another rank, size or type than the model takes."""
    check_noised(grid, sigma)
    shape = np.shape(grid)
    height, width, channels = shape[3:]
    if channels != config.channels or height % config.patch[1] or width % config.patch[2]:
        raise UserError(
            f"frames of {height} x {width} with {channels} channels: expected {config.channels} channels and sides that "
            f"the patch of {config.patch[1]} divides"
        )
    if given is not None and (np.shape(given) != shape[:3] or not jnp.issubdtype(jnp.result_type(given), jnp.bool_)):
        raise UserError(f"given is {jnp.result_type(given)} {list(np.shape(given))}: expected bool {list(shape[:3])}")


def check_noised(grid: Any, sigma: Any) -> None:
    """Raises UserError for frames or noise levels of a rank, length or type that no model takes."""
    shape, kind = np.shape(grid), jnp.result_type(grid)
    if len(shape) != 6:
        raise UserError(f"grid is {list(shape)}: expected [b, views, times, height, width, channels]")
    if not jnp.issubdtype(kind, jnp.floating):
        raise UserError(f"grid is {kind}: expected floating point; fourreal.grid.to_unit turns uint8 pixels to [-1, 1]")
    if np.shape(sigma) not in ((), shape[:1], shape[:3]):
        raise UserError(
            f"sigma is {list(np.shape(sigma))}: expected one number, {list(shape[:1])} or {list(shape[:3])}"
        )
    if not jnp.issubdtype(jnp.result_type(sigma), jnp.floating):
        raise UserError(f"sigma is {jnp.result_type(sigma)}: expected floating point, from 0 to 1")
