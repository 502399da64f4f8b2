"""The noise that sampling starts from, keyed by (seed, stage, v, t)."""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

MOST_VIEWS = 2**31  # what is folded in of a stage is no view


def cell_noise(
    seed: int, views: int, times: int, frame: tuple[int, int, int], stage: int = 0
) -> Float[Array, "v t h w c"]:
    """Noise keyed by (seed, stage, v, t): a cell's noise does not depend on the grid's size or on the devices."""
    key = jax.random.key(seed)
    return _cell_noise(jax.random.fold_in(key, MOST_VIEWS + stage) if stage else key, views, times, frame)


def normals(keys: jax.Array, shape: tuple[int, ...]) -> Float[Array, "n *shape"]:
    """`jax.random.normal(key, shape)` of each key; drawn flat, which compiles several times faster."""
    return jax.vmap(lambda key: jax.random.normal(key, (math.prod(shape),)))(keys).reshape(-1, *shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _cell_noise(key: jax.Array, views: int, times: int, frame: tuple[int, int, int]) -> jax.Array:
    cells = jnp.divmod(jnp.arange(views * times), times)
    keys = jax.vmap(lambda v, t: jax.random.fold_in(jax.random.fold_in(key, v), t))(*cells)
    return rearrange(normals(keys, frame), "(v t) ... -> v t ...", v=views)
