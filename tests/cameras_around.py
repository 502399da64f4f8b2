"""Cameras around a point, for tests of what is told cameras."""

import numpy as np

from fourreal.geometry import pinhole
from fourreal.scene import Cameras

VIEWS, SIZE = 3, 4


def around(views: int = VIEWS, distance: float = 2.5) -> Cameras:
    """Cameras around (1, -2, 0.5), 60 degrees in all, each with its own K."""
    share = np.linspace(0, 1, views)
    c2w = pinhole.orbit_arc(np.array([1, -2, 0.5]), distance, 30 + 60 * share, 20 + 10 * share)
    return Cameras(np.stack([pinhole.intrinsics(40 + 5 * v, SIZE) for v in range(views)]), c2w)


def batched(cameras: Cameras, known: tuple[bool, ...]) -> Cameras:
    """The same in every example."""
    K, c2w = (np.stack([array] * len(known)) for array in cameras[:2])
    return Cameras(K, c2w, known=np.array(known))
