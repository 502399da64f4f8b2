"""Context: what kind of clip a stream's clips are. A zero-initialised table of rows added to the modulation of every block.

A fusion says it for each of its streams; a caller of the base alone says it by name.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from fourreal.errors import UserError

CONTEXTS = ("dynamic", "freeze_time", "image")  # fixed view, freeze time, a single frame


class ContextTable(nnx.Module):
    """Six modulation vectors for each context."""

    layout: ClassVar[dict[str, P]] = {"table": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, width: int):
        self.table = nnx.Param(jnp.zeros((len(CONTEXTS), 6, width)))

    def __call__(self, six: Float[Array, "*cells 6 d"], context: str | None) -> Float[Array, "*cells 6 d"]:
        """The modulation with the context's row added; None adds none."""
        if context is None:
            return six
        if context not in CONTEXTS:
            raise UserError(f"context '{context}': expected one of {', '.join(CONTEXTS)} or None")
        return six + self.table[CONTEXTS.index(context)]
