"""Whether neighbouring views show one scene from the cameras that they should: epipolar distances of matched points.

    x_b^T F x_a = 0,    F = K_b^-T [t]_x R K_a^-1,    R = R_b^T R_a,    t = R_b^T (o_a - o_b)
    Sampson distance = |x_b^T F x_a| / sqrt((F x_a)_1^2 + (F x_a)_2^2 + (F^T x_b)_1^2 + (F^T x_b)_2^2)

of a point x_a of view a and its match x_b in view b, in pixels (Hartley and Zisserman 2003, 9.2 and 11.4.3). Points are
SIFT's (Lowe 2004), each the other's best match and clearly better than the second best. SIFT finds little in small frames, so
these are enlarged. A match may be anywhere on its epipolar line: docs/evaluation.md says what this does not see.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, UInt8

SIFT_SIZE = 128  # pixels; smaller frames are enlarged by a whole factor up to it
RATIO = 0.8  # of the distances of descriptors to the best and the second best match
INLIER = 1.0  # pixels
FEWEST = 16  # matches of a grid

Points = tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 128"]]


def epipolar(
    frames: UInt8[np.ndarray, "v t h w 3"],
    given: Bool[np.ndarray, "v t"],
    K: Float[np.ndarray, "v 3 3"],
    c2w: Float[np.ndarray, "v 4 4"],
) -> dict[str, float]:
    """Of the matches in all pairs of neighbouring views of one time, not from one place and at least one of them unknown:

    `median`: their Sampson distance in pixels; `inliers`: the share below 1 px; `matches`: how many a pair has on average.
    The first two are nan under 16 matches, all are without a pair.
    """
    points: dict[tuple[int, int], Points] = {}
    distances = []
    apart = (c2w[1:, :3, 3] != c2w[:-1, :3, 3]).any(-1)[:, None]
    for a, t in np.argwhere(apart & ~(given[:-1] & given[1:])).tolist():
        pair = (a, t), (a + 1, t)
        points |= {cell: sift_points(frames[cell]) for cell in pair if cell not in points}
        x_a, x_b = matched(*(points[cell] for cell in pair))
        distances.append(sampson_distance(fundamental_matrix(K[a], c2w[a], K[a + 1], c2w[a + 1]), x_a, x_b))
    if not distances:
        return dict.fromkeys(("median", "inliers", "matches"), math.nan)
    found = np.concatenate(distances)
    told = {"median": math.nan, "inliers": math.nan}
    if len(found) >= FEWEST:
        told = {"median": float(np.median(found)), "inliers": float((found < INLIER).mean())}
    return told | {"matches": len(found) / len(distances)}


def fundamental_matrix(
    K_a: Float[np.ndarray, "3 3"],
    c2w_a: Float[np.ndarray, "4 4"],
    K_b: Float[np.ndarray, "3 3"],
    c2w_b: Float[np.ndarray, "4 4"],
) -> Float[np.ndarray, "3 3"]:
    """F of two cameras in the conventions of `geometry/pinhole.py`: `x_b^T F x_a = 0` where both show one point."""
    a, b = c2w_a.astype(np.float64), c2w_b.astype(np.float64)
    x, y, z = b[:3, :3].T @ (a[:3, 3] - b[:3, 3])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (
        np.linalg.inv(K_b.astype(np.float64)).T
        @ cross
        @ b[:3, :3].T
        @ a[:3, :3]
        @ np.linalg.inv(K_a.astype(np.float64))
    )


def sampson_distance(
    F: Float[np.ndarray, "3 3"], x_a: Float[np.ndarray, "n 2"], x_b: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n"]:
    """How far pairs of points are, to first order, from the nearest pair that fits F; in pixels."""
    x_a, x_b = (np.concatenate([x, np.ones((len(x), 1))], axis=1) for x in (x_a, x_b))
    line_b, line_a = x_a @ F.T, x_b @ F
    gradient = np.square(np.concatenate([line_a[:, :2], line_b[:, :2]], axis=1)).sum(1)
    return np.abs((x_b * line_b).sum(1)) / np.sqrt(gradient)


def sift_points(frame: UInt8[np.ndarray, "h w 3"]) -> Points:
    """Where SIFT sees points, as column and row from the picture's edge, and their descriptors."""
    import cv2

    times = max(1, SIFT_SIZE // min(frame.shape[:2]))
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    points, descriptors = cv2.SIFT_create(enable_precise_upscale=True).detectAndCompute(grey, None)
    if not points:
        return np.empty((0, 2)), np.empty((0, 128))
    return (
        np.array([point.pt for point in points]) + 0.5
    ) / times, descriptors  # OpenCV's pixels have their centres at 0


def matched(a: Points, b: Points) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """The points of two pictures that are each other's nearest by descriptor, and a second one is not nearly as near."""
    (x_a, of_a), (x_b, of_b) = a, b
    if min(len(x_a), len(x_b)) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    squared = np.square(of_a).sum(1)[:, None] + np.square(of_b).sum(1) - 2 * of_a @ of_b.T
    best, second = np.partition(squared, 1, axis=1)[:, :2].T
    nearest = squared.argmin(1)
    kept = (squared.argmin(0)[nearest] == np.arange(len(x_a))) & (best < RATIO**2 * second)
    return x_a[kept], x_b[nearest[kept]]
