"""Pictures through a lens that bends straight lines, made into those of a pinhole.

The models are OpenCV's: the rational one with k1..k6, p1, p2, of which COLMAP's SIMPLE_RADIAL, RADIAL and OPENCV are cases, and
its fisheye (equidistant) with k1..k4. K is ours, in which the picture covers [0, size]; OpenCV's begins half a pixel later.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from fourreal.errors import UserError
from fourreal.media.pictures import fit

COARSE = 33  # places a side at which a pinhole is tried
ZOOMS = 1.02 ** np.arange(150)


@dataclass(frozen=True)
class Lens:
    """`coefficients` in OpenCV's order: k1, k2, p1, p2, k3, k4, k5, k6, of a fisheye k1, k2, k3, k4. False: a pinhole."""

    fisheye: bool = False
    coefficients: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return self.fisheye or any(self.coefficients)


def pinhole(lens: Lens, K: Float[np.ndarray, "3 3"], size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
    """K of the pinhole that a picture of `size` (height, width) is remapped to: the same, zoomed in until the lens fills it.

    Raises UserError where no zoom helps: such coefficients belong to another picture.
    """
    height, width = size
    shrink = np.diag([(COARSE - 1) / (width - 1), (COARSE - 1) / (height - 1), 1]) if min(size) > 1 else np.eye(3)
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # between OpenCV's pixels and ours
    for zoom in ZOOMS:
        zoomed = np.array([[K[0, 0] * zoom, 0, K[0, 2]], [0, K[1, 1] * zoom, K[1, 2]], [0, 0, 1]])
        coarse = shift @ shrink @ np.linalg.inv(shift) @ zoomed
        x, y = _places(lens, K, coarse, (COARSE, COARSE))
        inside = min(x.min(), y.min()) >= -0.51 and x.max() <= width - 0.49 and y.max() <= height - 0.49
        turns = np.diff(x, axis=1)[1:] * np.diff(y, axis=0)[:, 1:] - np.diff(x, axis=0)[:, 1:] * np.diff(y, axis=1)[1:]
        if inside and (turns > 0).all():  # not folded over
            return zoomed
    raise UserError("the lens bends the picture over itself: its coefficients or fl_x, w, h are another camera's")


def without_lens(picture: Image.Image, lens: Lens, K: Float[np.ndarray, "3 3"]) -> Image.Image:
    """The RGB picture, of the same size, that the camera `pinhole` sees."""
    import cv2

    size = picture.size[::-1]
    pixels = np.asarray(fit(picture, size, "center"))
    x, y = _places(lens, K, pinhole(lens, K, size), size)
    return Image.fromarray(cv2.remap(pixels, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def _places(lens: Lens, K: np.ndarray, seen: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of a pinhole with K `seen` lie in the lens's picture: columns and rows in OpenCV's pixels."""
    import cv2

    half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    model = cv2.fisheye if lens.fisheye else cv2
    count = 4 if lens.fisheye else 8
    bent = np.zeros(count)
    bent[: len(lens.coefficients)] = lens.coefficients
    return model.initUndistortRectifyMap(K - half, bent, np.eye(3), seen - half, size[::-1], cv2.CV_32FC1)
