"""Models from their configs, apart from their values: the module's structure and its parameters as a plain nested dict."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fourreal.models.grid_dit import GridDiT, GridDiTConfig
from fourreal.models.kernels import XLA, Kernel
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig

Params = dict[str, Any]


def build_model(base: VideoDiTConfig, grid: GridDiTConfig | None, seed: int = 0, kernel: Kernel = XLA) -> nnx.Module:
    """A fresh model. The base alone (`grid` None) stands under the name `base` too, so both kinds share parameter names."""
    model = VideoDiT(base, rngs=nnx.Rngs(seed), kernel=kernel)
    return nnx.Dict(base=model) if grid is None else GridDiT(model, grid, rngs=nnx.Rngs(seed + 1))


def split_model(base: VideoDiTConfig, grid: GridDiTConfig | None, kernel: Kernel = XLA) -> tuple[nnx.GraphDef, Params]:
    """The structure of a model, which holds its attention kernel, and the shapes of its parameters; allocates nothing."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build_model(base, grid, kernel=kernel)))
    return graph, nnx.to_pure_dict(shapes)


def fresh_params(base: VideoDiTConfig, grid: GridDiTConfig | None, seed: int, shardings: Any = None) -> Params:
    """Freshly initialised parameters, made where `shardings`, a tree like theirs, says; the same values anywhere."""
    return jax.jit(lambda: nnx.to_pure_dict(nnx.state(build_model(base, grid, seed))), out_shardings=shardings)()


def make_forward(graph: nnx.GraphDef) -> Callable[..., jax.Array]:
    """`forward(params, x, sigma, given, **conditions)` of the grid model or, on clips, of a base alone."""

    def forward(params: Params, *arguments: jax.Array, **conditions: Any) -> jax.Array:
        model = nnx.merge(graph, nnx.State(params))
        return (model if isinstance(model, GridDiT) else model.base)(*arguments, **conditions)

    return forward
