"""Given cells: their clean frames are inputs. They lie in `x` with sigma 0, and a learned vector marks their tokens."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float


class GivenVector(nnx.Module):
    """A vector, zero at first, on the tokens of given cells."""

    layout: ClassVar[dict[str, P]] = {"vector": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, width: int):
        self.vector = nnx.Param(jnp.zeros((width,)))

    def __call__(self, given: Bool[Array, "*cells"]) -> Float[Array, "*cells 1 d"]:
        return jnp.where(given[..., None, None], self.vector[...], jax.numpy.zeros(()))
