import math

import jax.numpy as jnp
import numpy as np

from fourreal.nn.embedding import sinusoid


def test_sinusoid_is_cosines_then_sines():
    out = sinusoid(jnp.asarray([0.0, 37.5]), 8)
    for row, position in zip(out, (0.0, 37.5), strict=True):
        frequencies = [10000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(position * w) for w in frequencies] + [math.sin(position * w) for w in frequencies]
        np.testing.assert_allclose(row, expected, atol=1e-5)  # 37.5 in fp32 is good to 4e-6 of a turn
