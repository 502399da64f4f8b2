"""Pinhole cameras in the OpenCV convention: x right, y down, z forward; the world's z is up.

`c2w` takes camera to world: X_world = R X + o. K in pixels, where the centre of pixel (column i, row j) is at
(i + 1/2, j + 1/2) and the picture covers [0, size]. A point at camera coordinates (x, y, z) is seen at
(f x / z + size / 2, f y / z + size / 2); `depth` is always z, never the distance along the ray.
"""

import numpy as np
from einops import einsum
from jaxtyping import Float
from numpy import ndarray

from fourreal.errors import UserError


def intrinsics(fov: float, size: int) -> Float[ndarray, "3 3"]:
    """K of a square picture of `size` pixels that sees `fov` degrees from edge to edge: f = size / (2 tan(fov / 2))."""
    if not 0 < fov < 180:
        raise UserError(f"a field of view of {fov} degrees cannot be: choose one between 0 and 180")
    focal = size / (2 * np.tan(np.radians(fov) / 2))
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)


def look_at(eye: ndarray, target: ndarray, up: ndarray = (0, 0, 1)) -> Float[ndarray, "4 4"]:
    """The c2w of a camera at `eye` that sees `target` in the middle of the picture, with `up` upward in it."""
    eye, target, up = (np.asarray(vector, np.float64) for vector in (eye, target, up))
    forward = target - eye
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-9 * max(np.linalg.norm(forward), 1e-30):
        raise UserError(f"a camera at {eye.tolist()} cannot look along 'up' to {target.tolist()}: move one of them")
    forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, eye], 1)
    return c2w.astype(np.float32)


def orbit_arc(target: ndarray, distance: ndarray, azimuth: ndarray, elevation: ndarray) -> Float[ndarray, "v 4 4"]:
    """Cameras around `target`, one for each azimuth [v] in degrees (0 = on +x, counter-clockwise seen from above).

    `distance` and `elevation` (degrees above the horizon) are one number or [v].
    """
    azimuth, elevation, distance = np.broadcast_arrays(np.radians(azimuth), np.radians(elevation), distance)
    direction = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1
    )
    return np.stack([look_at(eye, target) for eye in np.asarray(target) + distance[:, None] * direction])


def opengl_from_opencv(c2w: Float[ndarray, "*v 4 4"]) -> Float[ndarray, "*v 4 4"]:
    """The same cameras with OpenGL's (and NeRF's) axes: x right, y up, z backward. It is its own inverse."""
    return c2w * np.array([1, -1, -1, 1], c2w.dtype)


opencv_from_opengl = opengl_from_opencv


def project(points: Float[ndarray, "n 3"], K: Float[ndarray, "3 3"], c2w: Float[ndarray, "4 4"]) -> tuple:
    """World points to pixels: (positions [n, 2] as column and row, depth [n]); depth <= 0 is behind the camera."""
    camera = (points - c2w[:3, 3]) @ c2w[:3, :3]
    homogeneous = camera @ K.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[:, :2] / homogeneous[:, 2:], camera[:, 2]


def pixel_rays(
    K: Float[ndarray, "3 3"], c2w: Float[ndarray, "4 4"], height: int, width: int
) -> Float[ndarray, "h w 3"]:
    """World directions through the pixel centres, of length 1 along the camera's z, so that point = o + depth * ray."""
    row, column = np.mgrid[:height, :width] + 0.5
    camera = np.stack([(column - K[0, 2]) / K[0, 0], (row - K[1, 2]) / K[1, 1], np.ones_like(row)], -1)
    return einsum(c2w[:3, :3], camera, "i j, h w j -> h w i")


def unproject(
    depth: Float[ndarray, "h w"], K: Float[ndarray, "3 3"], c2w: Float[ndarray, "4 4"]
) -> Float[ndarray, "h w 3"]:
    """The world points that a depth map shows at its pixel centres."""
    return c2w[:3, 3] + depth[..., None] * pixel_rays(K, c2w, *depth.shape)
