"""The noise that sampling starts from, keyed by (seed, stage, v, t)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST_VIEWS = 2**31  # what is folded in of a stage is no view


def cell_noise(
    seed: int, views: int, times: int, frame: tuple[int, int, int], stage: int = 0
) -> Float[Array, "v t h w c"]:
    """Noise keyed by (seed, stage, v, t): a cell's noise does not depend on the grid's size or on the devices."""
    key = jax.random.key(seed)
    return _cell_noise(jax.random.fold_in(key, MOST_VIEWS + stage) if stage else key, views, times, frame)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _cell_noise(key: jax.Array, views: int, times: int, frame: tuple[int, int, int]) -> jax.Array:
    def draw(v: jax.Array, t: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, v), t), frame)

    return jax.vmap(lambda v: jax.vmap(lambda t: draw(v, t))(jnp.arange(times)))(jnp.arange(views))
