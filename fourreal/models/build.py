"""Models from their configs, apart from their values: the module's structure and its parameters as a plain nested dict."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx, traverse_util

from fourreal.models.grid_dit import GridDiT, GridDiTConfig
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig
from fourreal.nn.kernels import XLA, Kernel
from fourreal.parallel.layout import Table, parameter_table

Params = dict[str, Any]


def build_model(base: VideoDiTConfig, grid: GridDiTConfig, seed: int = 0, kernel: Kernel = XLA) -> GridDiT:
    """A fresh model."""
    return GridDiT(VideoDiT(base, rngs=nnx.Rngs(seed), kernel=kernel), grid, rngs=nnx.Rngs(seed + 1))


def split_model(base: VideoDiTConfig, grid: GridDiTConfig, kernel: Kernel = XLA) -> tuple[nnx.GraphDef, Params]:
    """The structure of a model, which holds its attention kernel, and the shapes of its parameters; allocates nothing."""
    graph, shapes = nnx.split(_abstract_model(base, grid, kernel))
    return graph, nnx.to_pure_dict(shapes)


@functools.cache
def model_table(base: VideoDiTConfig, grid: GridDiTConfig) -> Table:
    """What the modules of a model say of their parameters: sharding and training group, by path."""
    return parameter_table(_abstract_model(base, grid, XLA))


def computed_types(params: Params, table: Table) -> Params:
    """The type in which each parameter's module computes, in which it may be held with the same result."""
    flat = traverse_util.flatten_dict(params, sep=".")
    return traverse_util.unflatten_dict({name: table[name].dtype for name in flat}, sep=".")


@functools.cache
def _abstract_model(base: VideoDiTConfig, grid: GridDiTConfig, kernel: Kernel) -> GridDiT:
    return nnx.eval_shape(lambda: build_model(base, grid, kernel=kernel))


def fresh_params(
    base: VideoDiTConfig, grid: GridDiTConfig, seed: int, shardings: Any = None, names: Collection[str] | None = None
) -> Params:
    """Freshly initialised parameters, made where `shardings`, a tree like theirs, says; the same values anywhere.

    `names`: only those of such dotted names are made.
    """

    def make() -> Params:
        params = nnx.to_pure_dict(nnx.state(build_model(base, grid, seed)))
        if names is None:
            return params
        flat = traverse_util.flatten_dict(params, sep=".")
        return traverse_util.unflatten_dict({name: flat[name] for name in names}, sep=".")

    return jax.jit(make, out_shardings=shardings)()


def make_forward(graph: nnx.GraphDef) -> Callable[..., jax.Array]:
    """`forward(params, grid, sigma, given, conditions, cells)` of a model."""

    def forward(params: Params, *arguments: Any, **options: Any) -> jax.Array:
        return nnx.merge(graph, nnx.State(params))(*arguments, **options)

    return forward
