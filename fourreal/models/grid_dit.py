"""`GridDiT`: the two-stream transformer on grids, made of a `VideoDiT` and synchronization layers (4Real-Video, section 3).

    soft, hard   view stream: base block over each of the T freeze-time clips,  context freeze_time
                 time stream: base block over each of the V fixed-view clips,   context dynamic
                 after every block a synchronization layer, see `sync.py`
    none         the same two streams, never synchronized
    sequential   one stream: the block over views, then the block over times
    fused        one stream, context dynamic: a token sees its own view and its own time, at position v T + t
                 (4Real-Video-V2, section 3)

All use the base's own blocks and no other parameters than the sync's; `matched` gives the one-stream fusions as many, as a
control: see `sync.py`. The readout takes the head of the view stream, of the time stream, or the mean of both.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from fourreal import grid as axes
from fourreal.models import layers, sync
from fourreal.models.attention import fused_attention
from fourreal.models.cameras import Cameras
from fourreal.models.video_dit import VideoDiT, check_frames
from fourreal.parallel.activations import check_grid, place, swap_view_time

Fusion = Literal["soft", "hard", "sequential", "fused", "none"]
Readout = Literal["mean", "time", "view"]
SYNC_INITS = {"soft": tuple(sync.SOFT_INITS), "hard": tuple(sync.HARD_INITS)}  # the first is the default


@dataclasses.dataclass(frozen=True)
class GridDiTConfig:
    """How the two axes of a grid are brought together."""

    fusion: Fusion = "soft"
    """how the axes meet; see the README"""
    sync_init: str | None = None
    """initial mix of the sync layers: zero or consensus for soft, half, time or view for hard; none: the fusion's default"""
    readout: Readout = "mean"
    """which stream's head is the output: mean, time or view; the one-stream fusions have mean only"""
    matched: bool = False
    """sequential and fused: after every block a linear map with soft's parameters, zero at first; a control"""

    def __post_init__(self):
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"fusion '{self.fusion}': expected one of {', '.join(get_args(Fusion))}")
        inits = SYNC_INITS.get(self.fusion, ())
        if self.sync_init is not None and self.sync_init not in inits:
            raise ValueError(
                f"sync_init '{self.sync_init}' with fusion '{self.fusion}': expected "
                + (f"one of {', '.join(inits)}" if inits else "none, this fusion has no sync layers")
            )
        if self.matched and self.fusion not in ("sequential", "fused"):
            raise ValueError(
                f"matched with fusion '{self.fusion}': expected sequential or fused, which have one stream"
            )
        allowed = get_args(Readout) if self.fusion in ("soft", "hard", "none") else ("mean",)
        if self.readout not in allowed:
            raise ValueError(f"readout '{self.readout}' with fusion '{self.fusion}': expected {' or '.join(allowed)}")


class GridDiT(nnx.Module):
    """The grid model. `GridDiT(base, GridDiTConfig(), rngs=nnx.Rngs(1))(grid, sigma, given)`."""

    def __init__(self, base: VideoDiT, config: GridDiTConfig, *, rngs: nnx.Rngs):
        self.base = base
        self.config = config
        if config.fusion in SYNC_INITS or config.matched:
            width, dtype = base.config.width, jnp.dtype(base.config.dtype)
            init = config.sync_init or SYNC_INITS.get(config.fusion, (None,))[0]
            self.sync = layers.stack(
                lambda keys: sync.make_sync(config.fusion, init, width, dtype=dtype, rngs=keys), base.config.depth, rngs
            )
            self.sigma_projection = sync.SigmaProjection(width, rngs=rngs)

    def __call__(
        self,
        grid: Float[Array, "b v t h w c"],
        sigma: Float[Array, "b"] | Float[Array, "b v t"],
        given: Bool[Array, "b v t"] | None = None,
        hints: Float[Array, "b v t 2 h w c+1"] | None = None,
        text: Float[Array, "b l k"] | None = None,
        cameras: Cameras | None = None,
    ) -> Float[Array, "b v t h w c"]:
        """The raw output for a noised grid.

        Args:
            grid: frames at noise level sigma; given cells are clean.
            sigma: noise level in [0, 1], 1 = noise; one an example or one a cell. Given cells count as 0.
            given: which cells are clean inputs; none by default.
            hints: pictures with a validity channel, slot 0 of the same view, slot 1 of the same time. By default the
                nearest given cells. Only for a base with hints.
            text: embedded prompt; only for a base with text.
            cameras: one a view, K [b v 3 3] and c2w [b v 4 4]; only for a base with cameras, which also goes without.
        """
        check_frames(grid, self.base.config)
        check_grid(*grid.shape[1:3], self.base.config.heads)
        given = jnp.zeros(grid.shape[:3], bool) if given is None else given
        grid, given = place(grid), place(given)
        sigma = axes.cell_sigma(sigma, given)
        if self.base.config.hints and hints is None:
            hints = axes.grid_hints(grid, given)
        x = self.base.embed(grid, given, hints)
        if cameras is not None:
            x = x + self.base.embed_cameras(cameras, *grid.shape[3:5])[:, :, None]  # the same at all times
        temb, six = self.base.modulation(sigma)
        text = self.base.embed_text(text)
        if text is not None:
            text = text[:, None]  # one prompt for all clips of a grid
        run = {"fused": self._fused, "sequential": self._sequential}.get(self.config.fusion, self._two_streams)
        out = run(x, temb, six, grid.shape[3:5], text)
        return self.base.decode(out, grid, hints)

    def _clip_blocks(self, six, views: int, times: int, size: tuple[int, int], text):
        """The base block as a function of a layer's parameters and a stream, for the view stream and the time stream."""
        base = self.base
        six_v, six_t = swap_view_time(base.add_context(six, "freeze_time")), base.add_context(six, "dynamic")
        angles_v, angles_t = base.angles(np.arange(views), size), base.angles(np.arange(times), size)
        return (
            lambda block, x_v: base.run_block(block, x_v, six_v, angles_v, text),
            lambda block, x_t: base.run_block(block, x_t, six_t, angles_t, text),
        )

    def _two_streams(self, x, temb, six, size, text) -> Float[Array, "b v t s k"]:
        over_views, over_times = self._clip_blocks(six, *x.shape[1:3], size, text)
        synced = self.config.fusion in SYNC_INITS
        shift_scale_t = place(self.sigma_projection(temb)) if synced else None
        shift_scale_v = swap_view_time(shift_scale_t) if synced else None

        def layer(streams, parameters):
            block, sync_layer = parameters
            y_v, y_t = over_views(block, streams[0]), over_times(block, streams[1])
            x_v, x_t = sync_layer(y_v, y_t, shift_scale_v, shift_scale_t) if synced else (y_v, y_t)
            return place(x_v), place(x_t)

        parameters = (self.base.blocks, self.sync if synced else None)
        x_v, x_t = self.base.run_layers(layer, (swap_view_time(x), place(x)), parameters)
        heads = []
        if self.config.readout != "time":
            heads.append(swap_view_time(self.base.head(x_v, swap_view_time(temb))))
        if self.config.readout != "view":
            heads.append(self.base.head(x_t, temb))
        return sum(heads) / len(heads)

    def _matched(self, temb: jax.Array):
        """(parameters a layer, `add(parameters, x, y, *outputs)`): y, a block's output for x, plus the control's outputs."""
        if not self.config.matched:
            return None, lambda mod_linear, x, y, *outputs: y
        shift_scale = self.sigma_projection(temb)

        def add(mod_linear, x, y, *outputs):
            terms = mod_linear(sync.VIEW, x, shift_scale, outputs) + mod_linear(sync.TIME, y, shift_scale, outputs)
            return sum(terms, start=y + sum(mod_linear.bias[output] for output in outputs))

        return self.sync, add

    def _sequential(self, x, temb, six, size, text) -> Float[Array, "b v t s k"]:
        over_views, over_times = self._clip_blocks(six, *x.shape[1:3], size, text)
        linear, add = self._matched(temb)

        def layer(x, parameters):
            block, mod_linear = parameters
            x = add(mod_linear, x, swap_view_time(over_views(block, swap_view_time(x))), sync.VIEW)
            return place(add(mod_linear, x, over_times(block, x), sync.TIME))

        x = self.base.run_layers(layer, x, (self.base.blocks, linear))
        return self.base.head(x, temb)

    def _fused(self, x, temb, six, size, text) -> Float[Array, "b v t s k"]:
        views, times = x.shape[1:3]
        angles = rearrange(self.base.angles(np.arange(views * times), size), "(v t) s e -> v t s e", v=views)
        six = self.base.add_context(six, "dynamic")
        linear, add = self._matched(temb)

        def layer(x, parameters):
            block, mod_linear = parameters
            y = self.base.run_block(block, x, six, angles, text, fused_attention)
            return place(add(mod_linear, x, y, sync.VIEW, sync.TIME))

        x = self.base.run_layers(layer, x, (self.base.blocks, linear))
        return self.base.head(x, temb)
