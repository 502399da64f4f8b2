"""What a condition is: everything a model is told besides the frames, their noise level and which of them are given.

A condition is one file here, or in another package: a frozen dataclass in a model's config with a module that embeds its
value. A value is a pytree of arrays; conditions travel as a dict of values by name through models, guidance and samplers.
The given cells and the context belong to every model; the others are what `VideoDiTConfig.conditions` lists.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from fourreal.errors import UserError
from fourreal.grid import Cells, Known
from fourreal.scene import Scene
from fourreal.serialize import Kind

Conditions = dict[str, Any]


class Embedded(NamedTuple):
    """What a condition contributes to a grid; axes of size 1 broadcast, None is nothing."""

    tokens: Float[Array, "b v t s d"] | None = None
    """added to the tokens"""
    six: Float[Array, "b v t 6 d"] | None = None
    """added to the modulation of every block"""
    cross: Float[Array, "b n d"] | None = None
    """tokens for the condition's own cross-attention in every block"""
    pose: Float[Array, "b v t 4 4"] | None = None
    """affine matrices for the condition's own branch of self-attention in every block, see `nn/projective.py`"""
    pictures: Float[Array, "b v t k h w c+1"] | None = None
    """frames, each with a validity channel, from which an x0-model may copy"""


@dataclasses.dataclass(frozen=True)
class Condition(Kind):
    """A kind of condition. A subclass sets `kind`, its name, and overrides what differs."""

    drop: float = 0.0
    """share of the training examples that do not see it"""

    family: ClassVar[str] = "condition"
    axes: ClassVar[Mapping[str, str]] = {"": "b"}
    """leading grid axes of each array of the value, by field (`""`: of a value that is one array): b, b v or b v t"""
    from_given: ClassVar[bool] = False
    """made from the given cells, so that it is dropped with them"""
    pictures: ClassVar[int] = 0
    """how many pictures a cell it offers for copying"""
    copied: ClassVar[float] = 0.0
    """gate of these pictures before any training"""
    cross: ClassVar[bool] = False
    """whether every block has a cross-attention to its tokens"""
    pose: ClassVar[bool] = False
    """whether every block has a branch of self-attention with its poses"""
    Options: ClassVar[type | None] = None
    """frozen dataclass of its options on the command line, for `from_options`"""

    def __post_init__(self):
        if not 0 <= self.drop <= 1:
            raise UserError(f"{self.kind}: drop is {self.drop}: give a probability from 0 to 1")

    @property
    def name(self) -> str:
        """Its key in a dict of conditions."""
        return self.kind

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        """The module that embeds it in a base of such a `VideoDiTConfig`: `(value, cells, size) -> Embedded`."""
        raise NotImplementedError

    def default(self, known: Known) -> Any:
        """The value where the caller gives none; None: the model does without."""
        return None

    def filled(self, value: Any, known: Known) -> Any:
        """A value with what it may leave open filled in, so that it has the structure of its null value."""
        return value

    def null(self, value: Any) -> Any:
        """The value that says nothing, with the structure and shapes of `value`."""
        return jax.tree.map(jnp.zeros_like, value)

    def example(self, scene: Scene, given: Bool[np.ndarray, "v t"], rng: np.random.Generator | None) -> Any:
        """The value of one training or test example (without the batch axis); `rng` None: without chance.

        None where the model makes the value itself. Raises UserError for a scene that lacks what the condition needs.
        """
        return None

    def from_frames(
        self,
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
        valid: Bool[np.ndarray, "v t h w"] | None = None,
    ) -> Any:
        """What the host makes of the given frames of one grid where a caller says nothing; None: nothing."""
        return None

    def shapes(self, scene: Scene, given: Bool[np.ndarray, "v t"]) -> Any:
        """What `example` gives for a scene of zeros without text, as arrays or shapes: for planning a step without data."""
        return self.example(scene, given, None)

    def check(self, value: Any, views: int, times: int) -> Any:
        """A caller's value for one grid (no batch axis) as NumPy arrays. Raises UserError for what is none."""
        return jax.tree.map(np.asarray, value)

    @classmethod
    def check_options(cls, options: Any) -> str:
        """The option that needs a model with this condition, empty for none. Raises UserError where options contradict."""
        return ""

    def from_options(self, options: Any, inputs: Any) -> tuple[Any, str]:
        """(value or None, words for the line that says what is sampled) of a command line's options and inputs."""
        return None, ""


def axes_of(condition: Condition, value: Any) -> Any:
    """The leading grid axes of every array of a condition's value, as a tree of their numbers: 1 b, 2 b v, 3 b v t."""

    def lead(path: tuple, _: Any) -> int:
        field = getattr(path[-1], "name", getattr(path[-1], "key", "")) if path else ""
        return len(condition.axes[field].split())

    return jax.tree_util.tree_map_with_path(lead, value)


def check_conditions(listed: Sequence[Condition]) -> None:
    """Raises UserError where two conditions of a model have one name."""
    names = [condition.name for condition in listed]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"conditions name '{name}' twice: give each condition once")


def complete(listed: Sequence[Condition], conditions: Conditions, known: Known) -> Conditions:
    """The conditions with the defaults of those that the caller left out. Raises UserError for a name that is not listed."""
    names = [condition.name for condition in listed]
    for name in conditions:
        if name not in names:
            expected = f"it takes {', '.join(names)}" if names else "it takes none"
            raise UserError(f"this model takes no {name}: {expected}; list it in VideoDiTConfig(conditions=...)")
    told = {name: value for name, value in conditions.items() if value is not None}
    values = {c.name: c.filled(told[c.name], known) if c.name in told else c.default(known) for c in listed}
    return {name: value for name, value in values.items() if value is not None}


def without(listed: Sequence[Condition], conditions: Conditions, names: frozenset[str]) -> Conditions:
    """The conditions with those of `names` saying nothing; dropping `given` drops what is made from the given cells."""
    dropped = {c.name for c in listed if c.name in names or (c.from_given and "given" in names)}
    by_name = {c.name: c for c in listed}
    return {name: by_name[name].null(value) if name in dropped else value for name, value in conditions.items()}


def drop_examples(
    listed: Sequence[Condition], conditions: Conditions, dropped: Mapping[str, Bool[Array, "b"]]
) -> Conditions:
    """The conditions with a null value in the examples that `dropped` marks, by name."""

    def mix(mask: jax.Array, null: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(mask, tuple(range(1, value.ndim))), null, value)

    by_name = {c.name: c for c in listed}
    return {
        name: jax.tree.map(lambda *pair, mask=dropped[name]: mix(mask, *pair), by_name[name].null(value), value)
        if name in dropped
        else value
        for name, value in conditions.items()
    }


def embed(modules: Mapping[str, nnx.Module], conditions: Conditions, cells: Cells, size: tuple[int, int]) -> dict:
    """What every condition contributes, by name."""
    return {name: modules[name](value, cells, size) for name, value in conditions.items()}
