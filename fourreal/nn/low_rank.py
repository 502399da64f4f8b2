"""LoRA (Hu et al. 2021): what a linear map learns beside its own kernel, in few numbers.

y = x W + b + (alpha / rank) (x D) U,        D [in, rank] random, U [rank, out] zero, so that at first nothing is added
"""

import fnmatch
from collections.abc import Iterator, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from fourreal.errors import UserError
from fourreal.nn.cpu import dot

DOWN, UP = "lora_down", "lora_up"


class LowRank(nnx.Linear):
    """A linear map with such an addition, in place of `linear`, whose parameters it takes."""

    layout: ClassVar[dict[str, P]] = {DOWN: P(), UP: P()}
    group: ClassVar[str] = "lora"

    def __init__(self, linear: nnx.Linear, rank: int, scale: float, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        sizes = (linear.in_features, linear.out_features)
        super().__init__(*sizes, dtype=linear.dtype, kernel_init=zeros, rngs=rngs, dot_general=dot)
        self.kernel, self.bias, self.scale = linear.kernel, linear.bias, scale
        bound = linear.in_features**-0.5
        down = jax.random.uniform(rngs.params(), (linear.in_features, rank), minval=-bound, maxval=bound)
        self.lora_down, self.lora_up = nnx.Param(down), nnx.Param(jnp.zeros((rank, linear.out_features)))

    def __call__(self, x: jax.Array) -> jax.Array:
        down, up = (part[...].astype(self.dtype) for part in (self.lora_down, self.lora_up))
        return super().__call__(x) + self.scale * dot(dot(x.astype(self.dtype), down), up)


def add_low_rank(module: nnx.Module, maps: Sequence[str], rank: int, scale: float, *, rngs: nnx.Rngs) -> None:
    """Gives the linear maps in a module whose paths match one of `maps` (with * for any letters) an addition of that rank.

    Raises UserError for a pattern that no map matches.
    """
    found = list(_linears(module))
    paths = [path for path, _, _ in found]
    for pattern in maps:
        if not fnmatch.filter(paths, pattern):
            raise UserError(f"lora_maps has {pattern}: a block's linear maps are {', '.join(paths)}")
    for path, parent, name in found:
        if any(fnmatch.fnmatch(path, pattern) for pattern in maps):
            setattr(parent, name, LowRank(getattr(parent, name), rank, scale, rngs=rngs))


def _linears(module: nnx.Module, path: str = "") -> Iterator[tuple[str, nnx.Module, str]]:
    for name, child in list(vars(module).items()):
        if type(child) is nnx.Linear:
            yield path + name, module, name
        elif isinstance(child, nnx.Module):
            yield from _linears(child, f"{path}{name}.")
