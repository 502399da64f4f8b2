"""Layer norm in fp32, plain and modulated.

LN(x) = (x - mean) / sqrt(variance + EPSILON)
modulate(x; shift, scale) = LN(x) (1 + scale) + shift                                                              (Wan 2.1)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6


def layer_norm(x: Float[Array, "*lead d"]) -> Float[Array, "*lead d"]:
    """Layer norm without scale and bias, in fp32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)


def modulate(
    x: Float[Array, "*lead s d"], shift: Float[Array, "*lead d"], scale: Float[Array, "*lead d"]
) -> Float[Array, "*lead s d"]:
    """Layer norm with a shift and scale per frame."""
    return layer_norm(x) * (1 + scale[..., None, :]) + shift[..., None, :]
