"""`Denoiser`: what the frames behind a noised grid are, the one way from a model to everybody who asks it.

    x0 = denoiser(params, x, sigma, known, conditions)

x is at noise level sigma in every cell. The denoiser puts the known frames into the model's input, with sigma 0, and into its
answer; so along a sampler's straight path a given cell goes from noise to its frame. A missing cell is noise at sigma 1, an
invalid pixel of a given cell stays noise. It is differentiable in everything but the masks.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fourreal.conditions.condition import Condition, Conditions, complete
from fourreal.diffusion.flow import clean
from fourreal.errors import UserError
from fourreal.grid import Cells, Known, cell_sigma, shown
from fourreal.models.build import Params, make_forward, split_model
from fourreal.models.fusions import Probe
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.streams import check_noised
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.nn.kernels import XLA, Kernel

Sigma = Float[Array, ""] | Float[Array, "b"] | Float[Array, "b v t"]


class Heads(NamedTuple):
    """A model's raw output, and that of each of its streams."""

    readout: Float[Array, "b v t h w c"]
    streams: dict[str, Float[Array, "b v t h w c"]]
    observed: Any
    """what the probe observed, with a leading layer axis"""


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A model's structure with the meaning of its output; hashable, so that it can be a static argument."""

    graph: nnx.GraphDef
    prediction: str
    """what the model's output stands for: x0 or u"""
    conditions: tuple[Condition, ...]
    """that the model takes"""

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b v t h w c"],
        sigma: Sigma,
        known: Known,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
    ) -> Float[Array, "b v t h w c"]:
        """The clean frames behind x, the given ones as they are."""
        x0 = self.predict(params, x, sigma, known, conditions, cells)
        return jnp.where(known.mask[..., None, None, None], known.frames, x0)

    def predict(
        self,
        params: Params,
        x: Float[Array, "b v t h w c"],
        sigma: Sigma,
        known: Known,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
    ) -> Float[Array, "b v t h w c"]:
        """The same without putting the given frames into the answer."""
        output, x, sigma = self.output(params, x, sigma, known, conditions, cells)
        return clean(output, x, sigma, self.prediction)

    def output(
        self,
        params: Params,
        x: Float[Array, "b v t h w c"],
        sigma: Sigma,
        known: Known,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
    ) -> tuple[Float[Array, "b v t h w c"], Float[Array, "b v t h w c"], Float[Array, "b v t"]]:
        """(the model's raw output, the x and the noise level of every cell that it saw); what a loss is made of."""
        x, sigma, conditions = self._inputs(x, sigma, known, conditions)
        return make_forward(self.graph)(params, x, sigma, known.mask, conditions, cells), x, sigma

    def heads(
        self,
        params: Params,
        x: Float[Array, "b v t h w c"],
        sigma: Sigma,
        known: Known,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
        probe: Probe = Probe(),
    ) -> tuple[Heads, Float[Array, "b v t h w c"], Float[Array, "b v t"]]:
        """The same of every stream by itself, with what a probe observed."""
        x, sigma, conditions = self._inputs(x, sigma, known, conditions)
        model = nnx.merge(self.graph, nnx.State(params))
        outputs, observed = model.heads(x, sigma, known.mask, conditions, cells, probe)
        chosen = outputs.get(model.config.readout, sum(outputs.values()) / len(outputs))
        return Heads(chosen, outputs, observed), x, sigma

    def _inputs(
        self, x: jax.Array, sigma: Sigma, known: Known, conditions: Conditions | None
    ) -> tuple[jax.Array, jax.Array, Conditions]:
        """(x with what is known, the noise level of every cell, all conditions): what the model sees."""
        check_noised(x, sigma)
        check_known(x, known)
        sigma = cell_sigma(sigma, known.mask)
        if known.exists is not None:
            sigma = jnp.where(known.exists, sigma, 1.0)
        put = known.mask[..., None, None, None]
        if known.valid is not None:
            put = put & known.valid[..., None]
        x = jnp.where(put, known.frames, x)
        return x, sigma, complete(self.conditions, conditions or {}, shown(known))


def make_denoiser(base: VideoDiTConfig, grid: GridDiTConfig, kernel: Kernel = XLA) -> Denoiser:
    """The denoiser of a model; its parameters are arguments of every call."""
    return Denoiser(split_model(base, grid, kernel)[0], base.prediction, base.conditions)


def check_known(x: jax.Array, known: Known) -> None:
    """Raises UserError where what is known does not fit the grid."""
    if known.frames.shape != x.shape:
        raise UserError(f"known frames are {list(known.frames.shape)}: expected the grid's {list(x.shape)}")
    for name, array, shape in (
        ("mask", known.mask, x.shape[:3]),
        ("exists", known.exists, x.shape[:3]),
        ("valid", known.valid, x.shape[:5]),
    ):
        if array is not None and (array.shape != shape or array.dtype != bool):
            raise UserError(f"known.{name} is {array.dtype} {list(array.shape)}: expected bool {list(shape)}")
