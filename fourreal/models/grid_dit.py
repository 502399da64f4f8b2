"""`GridDiT`: a transformer on grids, made of a `VideoDiT` and a fusion (4Real-Video, section 3; see `fusions/`).

    soft, hard   two streams, over views and over times, and a synchronization layer after every block
    none         the same two streams, never synchronized
    sequential   one stream: the block over views, then the block over times
    fused        one stream: a token sees its own view and its own time (4Real-Video-V2, section 3)
    base         the base alone, on clips

All use the base's own blocks and no other parameters than the sync's. The readout takes the head of the view stream, of the
time stream, or the mean of both.
"""

import dataclasses
from typing import Any, ClassVar, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fourreal.conditions.condition import Conditions
from fourreal.errors import UserError
from fourreal.grid import Cells
from fourreal.models.fusions import Fusion, Probe
from fourreal.models.fusions.sync import SigmaProjection
from fourreal.models.streams import Result, run_grid
from fourreal.models.video_dit import VideoDiT
from fourreal.nn.stack import stack

SETTINGS = ("sync_init", "matched", "stride")  # of a fusion, which not every fusion has


@dataclasses.dataclass(frozen=True)
class GridDiTConfig:
    """How the two axes of a grid are brought together."""

    fusion: str = "soft"
    """how the axes meet: soft, hard, sequential, fused, none, or base for clips; see the README"""
    sync_init: str | None = None
    """initial mix of the sync layers: zero or consensus for soft, half, time or view for hard; none: the fusion's default"""
    readout: str = "mean"
    """which stream's head is the output: mean, time or view; the one-stream fusions have mean only"""
    matched: bool = False
    """sequential and fused: after every block a linear map with soft's parameters, zero at first; a control"""
    stride: int | None = None
    """fused: positions from one view to the next; none: the grid's times"""

    def __post_init__(self):
        kind = type(Fusion.from_text(self.fusion))
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for name in SETTINGS:
            value = getattr(self, name)
            if value in (None, False):
                continue
            if name not in fields:
                having = sorted(
                    k.kind for k in Fusion.kinds() if name in {field.name for field in dataclasses.fields(k)}
                )
                raise UserError(
                    f"{name} {value!r} with fusion '{self.fusion}': expected none, or {' or '.join(having)}"
                )
            choices = get_args(fields[name].type)
            if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
                raise UserError(f"{name} '{value}' with fusion '{self.fusion}': expected one of {', '.join(choices)}")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride is {self.stride}: expected 1 or more")
        if self.readout not in kind.readouts:
            expected = " or ".join(kind.readouts)
            raise UserError(f"readout '{self.readout}' with fusion '{self.fusion}': expected {expected}")

    def make_fusion(self) -> Fusion:
        """The fusion with these settings."""
        fusion = Fusion.from_text(self.fusion)
        said = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) not in (None, False)}
        return dataclasses.replace(fusion, **said)


class GridDiT(nnx.Module):
    """The grid model. `GridDiT(base, GridDiTConfig(), rngs=nnx.Rngs(1))(grid, sigma, given)`."""

    stacked: ClassVar[tuple[str, ...]] = ("sync",)

    def __init__(self, base: VideoDiT, config: GridDiTConfig, *, rngs: nnx.Rngs):
        self.base, self.config = base, config
        self.fusion = config.make_fusion()
        width, dtype = base.config.width, jnp.dtype(base.config.dtype)

        def make(keys: nnx.Rngs) -> nnx.Module | None:
            return self.fusion.make(width, dtype, keys)

        if nnx.eval_shape(lambda: make(nnx.Rngs(0))) is not None:
            self.sync = stack(make, base.config.depth, rngs)
            self.sigma_projection = SigmaProjection(width, rngs=rngs)

    def __call__(
        self,
        grid: Float[Array, "b v t h w c"],
        sigma: Float[Array, ""] | Float[Array, "b"] | Float[Array, "b v t"],
        given: Bool[Array, "b v t"] | None = None,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
    ) -> Float[Array, "b v t h w c"]:
        """The raw output for a noised grid.

        Args:
            grid: frames at noise level sigma, pixels in [-1, 1] or latents; given cells are clean.
            sigma: noise level in [0, 1], 1 = noise; one for all, one an example or one a cell. Given cells count as 0.
            given: which cells are clean inputs; none by default.
            conditions: by name, as the base's config lists them: hints [b v t 2 h w c+1] (by default the nearest given
                cells), cameras (K [b v 3 3], c2w [b v 4 4]), text [b l k].
            cells: where the cells stand in a larger grid; by default they are the whole grid.
        """
        result = self._run(grid, sigma, given, conditions, cells, Probe(), self.config.readout)
        heads = result.heads.values()
        if self.base.config.copies == "mix":  # whose frames are not linear in a head
            return sum(map(result.decode, heads)) / len(heads)
        return result.decode(sum(heads) / len(heads))

    def heads(
        self,
        grid: Float[Array, "b v t h w c"],
        sigma: Float[Array, ""] | Float[Array, "b"] | Float[Array, "b v t"],
        given: Bool[Array, "b v t"] | None = None,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
        probe: Probe = Probe(),
    ) -> tuple[dict[str, Float[Array, "b v t h w c"]], Any]:
        """(the raw output of every stream by name, what the probe observed in every layer)."""
        result = self._run(grid, sigma, given, conditions, cells, probe, "mean")
        return {name: result.decode(head) for name, head in result.heads.items()}, result.observed

    def _run(
        self, grid: Any, sigma: Any, given: Any, conditions: Any, cells: Any, probe: Probe, readout: str
    ) -> Result:
        parts = self.base, self.fusion, getattr(self, "sync", None), getattr(self, "sigma_projection", None)
        return run_grid(*parts, grid, sigma, given, conditions or {}, cells, probe, readout)
