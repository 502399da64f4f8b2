"""Numbers as vectors of cosines and sines."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sinusoid(position: Float[Array, "*lead"], width: int) -> Float[Array, "*lead width"]:
    """[cos, sin] of position * 10000^(-i / (width/2))."""
    half = width // 2
    angle = position[..., None].astype(jnp.float32) * jnp.exp(-np.log(1e4) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
