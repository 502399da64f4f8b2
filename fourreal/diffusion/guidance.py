"""Classifier-free guidance over the given cells and the text, with one call signature.

    x0 = x0() + w_given [x0(given) - x0()] + w_text [x0(given, text) - x0(given)]

The same combination as of velocities or of noise, since at a fixed x_sigma these are affine in x0 and the weights sum to 1. A
branch whose weight is 0 is never computed: with both weights 1 (or no text and w_given 1) there is one evaluation. All
branches run as one batch.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fourreal.diffusion.flow import clean, interpolate
from fourreal.grid import cell_sigma
from fourreal.models.cameras import Cameras


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Weights of the two conditions; 1 is no guidance."""

    given: float = 1.0
    text: float = 1.0


def branches(guidance: Guidance, has_text: bool) -> list[tuple[float, bool, bool]]:
    """The evaluations needed: (weight, with given cells, with text)."""
    w_given, w_text = guidance.given, guidance.text if has_text else 0.0
    all_branches = [(1.0 - w_given, False, False), (w_given - w_text, True, False), (w_text, True, True)]
    return [branch for branch in all_branches if branch[0] != 0.0]


def guided_clean(
    model: Callable,
    x: Float[Array, "b v t h w c"],
    sigma: Float[Array, ""],
    x0_given: Float[Array, "b v t h w c"],
    eps: Float[Array, "b v t h w c"],
    given: Bool[Array, "b v t"],
    guidance: Guidance,
    prediction: str,
    text: Float[Array, "b l k"] | None = None,
    null_text: Float[Array, "1 l k"] | None = None,
    cameras: Cameras | None = None,
) -> Float[Array, "b v t h w c"]:
    """The clean grid x0 that the model sees at one noise level of the whole grid.

    `x` holds the clean frames in its given cells. A branch without them sees those cells at noise level sigma, on the straight
    path from `x0_given` to `eps`, and as unknown. `null_text` is what the model was trained with for "no text". All branches
    see the cameras.
    """
    active = branches(guidance, text is not None)
    batch = x.shape[0]
    noised = interpolate(x0_given, eps, jnp.broadcast_to(sigma, given.shape))
    inputs, masks, prompts = [], [], []
    for _, with_given, with_text in active:
        inputs.append(x if with_given else jnp.where(given[..., None, None, None], noised, x))
        masks.append(given if with_given else jnp.zeros_like(given))
        if text is not None:
            prompts.append(text if with_text else jnp.broadcast_to(null_text, text.shape))
    joined, mask = jnp.concatenate(inputs), jnp.concatenate(masks)
    level = jnp.full((len(active) * batch,), sigma)
    conditions = {"text": jnp.concatenate(prompts)} if prompts else {}
    if cameras is not None:
        conditions["cameras"] = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(active)), cameras)
    output = model(joined, level, mask, **conditions)
    x0 = clean(output, joined, cell_sigma(level, mask), prediction)
    parts = jnp.split(x0, len(active))
    return sum(weight * part for (weight, _, _), part in zip(active, parts, strict=True))
