"""Text: an embedded prompt, one for a grid. Every block's tokens look at it in a cross-attention of their own, as in Wan."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from fourreal.conditions.condition import Condition, Embedded
from fourreal.errors import UserError
from fourreal.grid import Cells, Known
from fourreal.nn.linear import MLP
from fourreal.parallel.layout import FSDP
from fourreal.scene import Scene

TOKENS = 512  # of an embedded text, as Wan takes it


class TextTokens(nnx.Module):
    """The text's tokens: an MLP from the features' width to the model's."""

    layout: ClassVar[dict[str, P]] = {
        "embed.in_.kernel": P(None, FSDP),
        "embed.in_.bias": P(),
        "embed.out.kernel": P(FSDP, None),
        "embed.out.bias": P(),
    }

    def __init__(self, features: int, base: Any, *, rngs: nnx.Rngs):
        self.embed = MLP(features, base.width, base.width, dtype=jnp.dtype(base.dtype), rngs=rngs)

    def __call__(self, text: Float[Array, "b l k"], cells: Cells, size: tuple[int, int]) -> Embedded:
        return Embedded(cross=self.embed(text))


@dataclasses.dataclass(frozen=True)
class Text(Condition):
    """An embedded prompt, which the model cannot do without."""

    width: int = 4096
    """width of the features"""

    kind = "text"
    cross = True

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        return TextTokens(self.width, base, rngs=rngs)

    def default(self, known: Known) -> Any:
        raise UserError("this model needs text: give the features of a prompt, text=[l, k]")

    def example(
        self, scene: Scene, given: Bool[np.ndarray, "v t"], rng: np.random.Generator | None
    ) -> Float[np.ndarray, "l k"]:
        if scene.text is None:
            raise UserError("the model takes text and the source's scenes hold none: take a source with text features")
        return np.asarray(scene.text, np.float32)

    def shapes(self, scene: Scene, given: Bool[np.ndarray, "v t"]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((TOKENS, self.width), np.float32)

    def check(self, value: Any, views: int, times: int) -> Float[np.ndarray, "l k"]:
        value = np.asarray(value, np.float32)
        if value.ndim != 2 or value.shape[1] != self.width:
            raise UserError(f"text is {list(value.shape)}: expected features [l, {self.width}] of one prompt")
        return value
