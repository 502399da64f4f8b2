"""Sampling: the path from noise to frames as one `lax.scan` over the noise levels.

    u(x, sigma) = (x - x0(x, sigma)) / sigma
    Euler  x' = x + (sigma' - sigma) u(x, sigma)
    Heun   x' = x + (sigma' - sigma) [u(x, sigma) + u(x_euler, sigma')] / 2, the last step Euler

Levels go from 1 to 0. Given cells are reset to their clean frames before every evaluation and at the end. The last step
arrives at x0 itself.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fourreal.diffusion.flow import shift_sigma
from fourreal.diffusion.guidance import Guidance, guided_clean
from fourreal.models.cameras import Cameras

METHODS = ("euler", "heun")


def noise_levels(steps: int, shift: float = 1.0) -> Float[np.ndarray, "steps+1"]:
    """sigma from 1 to 0 in `steps` steps, evenly spaced before the shift."""
    if steps < 1:
        raise ValueError(f"{steps} steps: expected at least 1")
    return shift_sigma(np.linspace(1.0, 0.0, steps + 1), shift).astype(np.float32)


def cell_noise(seed: int, views: int, times: int, frame: tuple[int, int, int]) -> Float[Array, "v t h w c"]:
    """Noise keyed by (seed, v, t): a cell's noise does not depend on the grid's size or on the devices."""
    return _cell_noise(jax.random.key(seed), views, times, frame)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _cell_noise(key: jax.Array, views: int, times: int, frame: tuple[int, int, int]) -> jax.Array:
    def draw(v: jax.Array, t: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, v), t), frame)

    return jax.vmap(lambda v: jax.vmap(lambda t: draw(v, t))(jnp.arange(times)))(jnp.arange(views))


def integrate(
    clean: Callable[[jax.Array, jax.Array], jax.Array],
    noise: Float[Array, "b v t h w c"],
    frames: Float[Array, "b v t h w c"],
    given: Bool[Array, "b v t"],
    levels: Float[np.ndarray, "steps+1"],
    method: str = "euler",
) -> Float[Array, "b v t h w c"]:
    """Integrates the flow of `clean(x, sigma) -> x0` from noise to frames; the given cells of `frames` stay as they are."""
    if method not in METHODS:
        raise ValueError(f"method '{method}': expected one of {', '.join(METHODS)}")
    mask = given[..., None, None, None]

    def reset(x: jax.Array) -> jax.Array:
        return jnp.where(mask, frames, x)

    def velocity(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return (x - clean(x, sigma)) / sigma

    def step(x: jax.Array, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sigma, after = level
        u = velocity(x, sigma)
        if method == "heun":
            u = (u + velocity(reset(x + (after - sigma) * u), after)) / 2
        return reset(x + (after - sigma) * u), None

    levels = jnp.asarray(levels)
    x, _ = jax.lax.scan(step, reset(noise), (levels[:-2], levels[1:-1]))
    return reset(clean(x, levels[-2]))


def sample_grid(
    model: Callable,
    frames: Float[Array, "b v t h w c"],
    given: Bool[Array, "b v t"],
    noise: Float[Array, "b v t h w c"],
    levels: Float[np.ndarray, "steps+1"],
    prediction: str,
    guidance: Guidance = Guidance(),
    method: str = "euler",
    text: Float[Array, "b l k"] | None = None,
    null_text: Float[Array, "1 l k"] | None = None,
    cameras: Cameras | None = None,
) -> Float[Array, "b v t h w c"]:
    """Samples the unknown cells of `frames` (pixels in [-1, 1]); the given ones come back as they are.

    `model(x, sigma, given, text=..., cameras=...)`, called with what there is of the last two, returns the raw output. Works on
    clips `[b, f, ...]` just as well.
    """

    def clean(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return guided_clean(model, x, sigma, frames, noise, given, guidance, prediction, text, null_text, cameras)

    return integrate(clean, noise, frames, given, levels, method)
