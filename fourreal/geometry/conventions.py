"""What a file's 4x4 matrices may mean, and which reading makes its cameras look at one subject."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fourreal.geometry.pinhole import opencv_from_opengl

AXES = ("opengl", "opencv")
POSES = ("c2w", "w2c")
WIDEST = 20.0  # degrees between a camera's axis and the subject that it is still said to look at
PARALLEL = np.sin(np.radians(1.0)) ** 2  # of the axes, in the mean: below it nothing says where they meet


def to_opencv(matrices: Float[ndarray, "v 4 4"], axes: str, poses: str) -> Float[ndarray, "v 4 4"]:
    """Camera to world in OpenCV's axes from matrices in `axes` (opengl, opencv) that are `poses` (c2w, w2c)."""
    c2w = matrices if poses == "c2w" else np.linalg.inv(matrices)
    return c2w if axes == "opencv" else opencv_from_opengl(c2w)


def subject(c2w: Float[ndarray, "v 4 4"]) -> Float[ndarray, "3"] | None:
    """The point nearest to all optical axes (OpenCV), if it is in front of every camera and near the middle of its picture."""
    origins, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # P_v: away from the axis
    if np.linalg.eigvalsh(across.mean(0))[0] < PARALLEL:
        return None
    point = np.linalg.solve(across.sum(0), (across @ origins[:, :, None]).sum(0)[:, 0])
    seen = point - origins
    distance = np.linalg.norm(seen, axis=1)
    inside = (forward * seen).sum(1) >= np.cos(np.radians(WIDEST)) * distance
    return point if inside.all() and distance.min() > 1e-3 * distance.max() else None


def readings(c2w: Float[ndarray, "v 4 4"]) -> dict[tuple[str, str], Float[ndarray, "3"]]:
    """The readings (axes, poses) of OpenGL's camera-to-world matrices under which all look at one subject, and that point.

    `c2w` is in OpenCV's axes, as a file of OpenGL's matrices was understood.
    """
    written = opencv_from_opengl(c2w)
    found = {(axes, poses): subject(to_opencv(written, axes, poses)) for axes in AXES for poses in POSES}
    return {reading: point for reading, point in found.items() if point is not None}
