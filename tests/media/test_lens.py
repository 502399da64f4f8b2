"""Pictures without their lens, against OpenCV's formulas written out."""

import numpy as np
import pytest
from PIL import Image

from fourreal.errors import UserError
from fourreal.media.lens import Lens, pinhole, without_lens

SIZE = (120, 160)
K = np.array([[150.0, 0, 83], [0, 145, 58], [0, 0, 1]])
LENSES = {
    "radial": Lens(False, (-0.25, 0.1, 0.0, 0.0, 0.02)),
    "pincushion": Lens(False, (0.3,)),
    "tangential": Lens(False, (0.05, 0.0, 0.01, -0.02)),
    "rational": Lens(False, (0.4, 0.1, 0.001, 0.002, 0.02, 0.6, 0.1, 0.05)),
    "fisheye": Lens(True, (0.1, -0.05, 0.02, -0.01)),
    "equidistant": Lens(True),
}


def bent(lens: Lens, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a lens shows the direction (x, y, 1), in focal lengths."""
    r2 = x * x + y * y
    k = np.zeros(8)
    k[: len(lens.coefficients)] = lens.coefficients
    if lens.fisheye:
        r = np.maximum(np.sqrt(r2), 1e-12)
        angle = np.arctan(r)
        scale = angle * (1 + k[0] * angle**2 + k[1] * angle**4 + k[2] * angle**6 + k[3] * angle**8) / r
        return x * scale, y * scale
    k1, k2, p1, p2, k3, k4, k5, k6 = k
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


@pytest.mark.parametrize("name", LENSES)
def test_every_spot_is_where_the_pinhole_sees_it(name):
    lens = LENSES[name]
    straight = pinhole(lens, K, SIZE)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for across, down in ((40, 30), (80, 60), (130, 95), (20, 100)):
        x, y = (across - straight[0, 2]) / straight[0, 0], (down - straight[1, 2]) / straight[1, 1]
        u, v = bent(lens, x, y)
        u, v = K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]
        light = 255 * np.exp(-((column - u) ** 2 + (row - v) ** 2) / (2 * 2.5**2))
        seen = np.asarray(without_lens(Image.fromarray(light.astype(np.uint8)), lens, K))[..., 0].astype(float)
        middle = (seen * column).sum() / seen.sum(), (seen * row).sum() / seen.sum()
        # 8-bit levels, and a spot of 2.5 px is bent unevenly: 0.1 px; the lens moves it by up to 12
        np.testing.assert_allclose(middle, (across, down), atol=0.25)


@pytest.mark.parametrize("name", LENSES)
def test_the_lens_s_picture_fills_the_pinhole_s(name):
    lens = LENSES[name]
    straight = pinhole(lens, K, SIZE)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    u, v = bent(lens, (column - straight[0, 2]) / straight[0, 0], (row - straight[1, 2]) / straight[1, 1])
    u, v = K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]
    # OpenCV's maps are float32, and a pixel's middle may lie on the picture's edge
    assert min(u.min(), v.min()) > -0.1 and u.max() < SIZE[1] + 0.1 and v.max() < SIZE[0] + 0.1
    assert straight[0, 0] / K[0, 0] == straight[1, 1] / K[1, 1] >= 1  # the same aspect, never wider
    assert (straight[0, 0] > K[0, 0]) == (name in ("pincushion", "tangential"))


def test_coefficients_that_fold_the_picture_are_refused_or_cut_off():
    assert pinhole(Lens(False, (-0.9,)), K, SIZE)[0, 0] < 3 * K[0, 0]  # r - 0.9 r^3 turns back at r = 0.61
    with pytest.raises(UserError, match="bends the picture over itself"):
        pinhole(Lens(False, (-1e4,)), K, SIZE)


def test_a_pinhole_s_picture_stays_as_it_is_and_grey_becomes_rgb():
    pixels = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    straight = without_lens(Image.fromarray(pixels), Lens(), K)
    np.testing.assert_array_equal(np.asarray(straight), np.repeat(pixels[..., None], 3, 2))
