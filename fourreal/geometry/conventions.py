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


def subject(c2w: Float[ndarray, "v 4 4"]) -> tuple[Float[ndarray, "3"], float] | None:
    """The point nearest to all optical axes (OpenCV), if it is in front of every camera and near the middle of its picture.

    With it the smallest cosine between an axis and the direction to the point.
    """
    origins, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # P_v: away from the axis
    if np.linalg.eigvalsh(across.mean(0))[0] < PARALLEL:
        return None
    middle = origins.mean(0)  # else places in UTM would lose digits
    away = (across @ (origins - middle)[:, :, None]).sum(0)[:, 0]
    point = middle + np.linalg.solve(across.sum(0), away)
    seen = point - origins
    cosine = ((forward * seen).sum(1) / np.maximum(np.linalg.norm(seen, axis=1), 1e-300)).min()
    return (point, float(cosine)) if cosine >= np.cos(np.radians(WIDEST)) else None


def readings(c2w: Float[ndarray, "v 4 4"]) -> dict[tuple[str, str], Float[ndarray, "3"]]:
    """The readings (axes, poses) of OpenGL's camera-to-world matrices under which all look at one subject, and that point.

    `c2w` is in OpenCV's axes, as a file of OpenGL's matrices was understood. The sharpest reading comes first.
    """
    written = opencv_from_opengl(c2w)
    found = {(axes, poses): subject(to_opencv(written, axes, poses)) for axes in AXES for poses in POSES}
    fitting = {reading: match for reading, match in found.items() if match is not None}
    return {reading: fitting[reading][0] for reading in sorted(fitting, key=lambda reading: -fitting[reading][1])}
