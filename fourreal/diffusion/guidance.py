"""Classifier-free guidance: a weighted sum of what a denoiser says with and without some of what it is told.

    x0 = sum_k w_k x0(branch k),    sum_k w_k = 1

The same combination as of velocities or of noise, since at a fixed x these are affine in x0. Which branches there are is
static; their weights are arrays, so that another scale compiles nothing. All branches run as one batch. A branch without the
given cells sees them at noise level sigma, as unknown, and nothing that was made from them.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fourreal.conditions.condition import Condition, Conditions, complete, without
from fourreal.diffusion.denoiser import Denoiser, Sigma
from fourreal.errors import UserError
from fourreal.grid import Cells, Known, cell_sigma, shown
from fourreal.models.build import Params

GUIDED = frozenset({"given", "text"})  # what guidance goes without by default


class Branch(NamedTuple):
    """One evaluation: names of what it is not told, conditions or `given`."""

    drop: frozenset[str] = frozenset()


def scale_branches(
    scale: float, drop: frozenset[str] = GUIDED
) -> tuple[tuple[Branch, ...], Float[np.ndarray, "branches"]]:
    """(branches, weights) of the usual guidance scale: x0(drop) + scale [x0() - x0(drop)]; at 1 one evaluation."""
    if scale == 1:
        return (Branch(),), np.ones(1, np.float32)
    return (Branch(drop), Branch()), np.array([1 - scale, scale], np.float32)


def guided_names(guide: Collection[str] | None, conditions: Sequence[Condition]) -> frozenset[str]:
    """What guidance goes without: `given` or names of conditions; None: given and text. Raises UserError for others."""
    names = dict.fromkeys(["given", *(condition.name for condition in conditions)])
    if guide is None:
        return GUIDED
    if odd := [name for name in guide if name not in names]:
        raise UserError(
            f"guidance by {odd[0]}: this checkpoint takes no such thing, expected some of {', '.join(names)}"
        )
    return frozenset(guide)


@dataclasses.dataclass(frozen=True)
class Guided:
    """A denoiser of several branches; called like `Denoiser`, with the weights of the branches."""

    denoiser: Denoiser
    branches: tuple[Branch, ...] = (Branch(),)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b v t h w c"],
        sigma: Sigma,
        known: Known,
        conditions: Conditions | None = None,
        cells: Cells | None = None,
        weights: Float[Array, "branches"] | None = None,
    ) -> Float[Array, "b v t h w c"]:
        """The clean frames behind x, the given ones as they are; `weights` None: one branch of weight 1."""
        if len(self.branches) > 1 and np.shape(weights) != (len(self.branches),):
            raise UserError(
                f"weights are {list(np.shape(weights))}: expected one for each of {len(self.branches)} branches"
            )
        mask = known.mask[..., None, None, None]
        conditions = complete(self.denoiser.conditions, conditions or {}, shown(known))
        told = [self._told(branch, known, conditions) for branch in self.branches]
        if len(told) == 1:
            x0 = self.denoiser.predict(params, x, sigma, *told[0], cells)
        else:
            branch_known, branch_conditions = jax.tree.map(lambda *parts: jnp.concatenate(parts), *told)
            level = cell_sigma(sigma, jnp.zeros_like(known.mask))
            x, level = (jnp.concatenate([part] * len(told)) for part in (x, level))
            parts = jnp.split(
                self.denoiser.predict(params, x, level, branch_known, branch_conditions, cells), len(told)
            )
            x0 = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        return jnp.where(mask, known.frames, x0)

    def _told(self, branch: Branch, known: Known, conditions: Conditions) -> tuple[Known, Conditions]:
        """What is known, and the conditions, of a branch."""
        if "given" in branch.drop:
            known = known._replace(mask=jnp.zeros_like(known.mask))
        return known, without(self.denoiser.conditions, conditions, branch.drop)
