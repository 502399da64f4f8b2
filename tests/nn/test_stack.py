import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fourreal.nn.linear import MLP
from fourreal.nn.stack import stack


def test_stacked_modules_are_initialised_one_by_one():
    stacked = stack(lambda keys: MLP(4, 5, 4, dtype=jnp.float32, rngs=keys), depth=3, rngs=nnx.Rngs(0))
    kernel = np.asarray(stacked.in_.kernel[...])
    assert kernel.shape == (3, 4, 5)
    assert not np.allclose(kernel[0], kernel[1]) and not np.allclose(kernel[1], kernel[2])
    # Xavier of 4 inputs and 5 outputs, whatever the number of layers
    assert np.abs(kernel).max() <= math.sqrt(6 / 9)
    assert np.abs(kernel).max() > 0.8 * math.sqrt(6 / 9)
