"""Cameras as a condition: rays in Pluecker coordinates, or projections, whatever world and unit the poses came in.

    reference camera = origin    c2w_v <- c2w_0^-1 c2w_v       (0: the reference, by default the first)
    focus distance = unit        o_v <- o_v / focus
    ray of a pixel               (d, o x d),  d = R K^-1 (column + 1/2, row + 1/2, 1) of length 1
    projection of a view         P = [K | 0; 0 1] c2w^-1,  K by the picture's width and height

The focus is the point of the first optical axis that is nearest to all axes: with p(z) = o_0 + z f_0 and P_v = I - f_v f_v^T,

    z = argmin sum_v |P_v (p(z) - o_v)|^2 = sum_v f_0 P_v (o_v - o_0) / sum_v f_0 P_v f_0,    f_0 P_v f_0 = sin^2(f_0, f_v)

so cameras around a subject are measured by their distance to it, and a rotated, moved or scaled world gives equal rays. The
axes miss that point by g_v = P_v (p(z) - o_v); two numbers each, one of them fitted, tell how well z is known:

    error(z)^2 = sum_v |g_v|^2 / (2 (V - 1) - 1) / sum_v f_0 P_v f_0
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum
from jaxtyping import Array, Float, Int

from fourreal.errors import UserError
from fourreal.scene import Cameras

RAY = 6  # numbers a pixel: direction and moment
PARALLEL = np.sin(np.radians(1.0)) ** 2  # mean sin^2 below which the axes do not say where they meet
SURE = 3.0  # errors that z must be away from 0: cameras that turn on a tripod, and shake, meet nowhere
SCATTERED = 1.2  # steps^2 over deviations^2 from the mean: 2 for noise, 1 for three places in a row, less for more


def _origin(c2w: Float[Array, "*b v 4 4"], reference: Int[Array, "*b"] | None) -> Float[Array, "*b 1 4 4"]:
    """The pose of the reference camera."""
    if reference is None:
        return c2w[..., :1, :, :]
    return jnp.take_along_axis(c2w, jnp.asarray(reference)[..., None, None, None], axis=-3)


def focus_distance(c2w: Float[Array, "*b v 4 4"], reference: Int[Array, "*b"] | None = None) -> Float[Array, "*b"]:
    """How far from the reference camera its axis comes nearest to all axes, in the poses' unit.

    Where that is behind it, not known or the axes are parallel (1 degree in the mean), the farthest camera's distance from the
    reference stands in; 1 where all stand in one place. Where it is not known and the places are scattered like noise, they
    are noise: infinite, which leaves the rotations.
    """
    origin = _origin(c2w, reference)
    axes, offsets = c2w[..., :3, 2], c2w[..., :3, 3] - origin[..., :3, 3]
    first = origin[..., :3, 2]
    across = first - jnp.sum(first * axes, -1, keepdims=True) * axes  # P_v f_0
    spread = jnp.sum(across * first, (-2, -1))
    meeting = jnp.sum(across * offsets, (-2, -1)) / jnp.maximum(spread, 1e-12)
    farthest = jnp.sqrt(jnp.maximum(jnp.max(jnp.sum(offsets**2, -1), -1), 1e-14))  # its gradient at 0 is 0
    others = max(c2w.shape[-3] - 1, 1)
    gaps = meeting[..., None, None] * first - offsets
    gaps = gaps - jnp.sum(gaps * axes, -1, keepdims=True) * axes
    error = jnp.sum(gaps**2, (-2, -1)) / (2 * others - 1)  # times spread, squared
    crossing, sure = spread > PARALLEL * others, meeting**2 * spread > SURE**2 * error
    steps = jnp.sum(jnp.diff(offsets, axis=-2) ** 2, (-2, -1))
    scattered = steps > SCATTERED * jnp.sum((offsets - jnp.mean(offsets, -2, keepdims=True)) ** 2, (-2, -1))
    distance = jnp.where(crossing & sure & (meeting > 0), meeting, farthest)
    distance = jnp.where(distance > 2e-7, distance, 1.0)
    return jnp.where(crossing & ~sure & scattered, jnp.inf, distance)


def from_first(c2w: Float[np.ndarray, "v 4 4"]) -> Float[np.ndarray, "v 4 4"]:
    """The cameras in a world that begins at the first one: differences in float64, before any cast, of places far away."""
    moved = np.array(c2w, np.float64)
    moved[:, :3, 3] -= moved[0, :3, 3]
    return moved


def relative_poses(cameras: Cameras) -> tuple[Float[Array, "*b v 3 3"], Float[Array, "*b v 3"]]:
    """(rotations, places) of the cameras, from the reference camera and in units of the focus distance."""
    c2w = jnp.asarray(cameras.c2w, jnp.float32)
    origin = _origin(c2w, cameras.reference)
    focus = focus_distance(c2w, cameras.reference) if cameras.focus is None else jnp.asarray(cameras.focus, jnp.float32)
    to_first = jnp.swapaxes(origin[..., 0, :3, :3], -1, -2)
    offsets = (c2w[..., :3, 3] - origin[..., :3, 3]) / focus[..., None, None]
    with jax.default_matmul_precision("highest"):  # accelerators round what goes into fp32 matmuls
        rotations = einsum(to_first, c2w[..., :3, :3], "... i j, ... v j k -> ... v i k")
        return rotations, einsum(to_first, offsets, "... i j, ... v j -> ... v i")


def projections(cameras: Cameras, height: int, width: int) -> Float[Array, "*b v 4 4"]:
    """[K | 0; 0 1] c2w^-1 of poses as `relative_poses` gives them; K takes a picture to [-1/2, 1/2] x [-1/2, 1/2]."""
    K, (rotations, origins) = jnp.asarray(cameras.K, jnp.float32), relative_poses(cameras)
    scale, shift = np.float32([1 / width, 1 / height, 1]), np.float32([0.5, 0.5, 0])
    K = K * scale[:, None] - shift[:, None] * K[..., 2:, :]
    to_picture = jnp.sum(K[..., None] * jnp.swapaxes(rotations, -1, -2)[..., None, :, :], axis=-2)
    moved = -jnp.sum(to_picture * origins[..., None, :], axis=-1, keepdims=True)
    last = jnp.broadcast_to(np.float32([0, 0, 0, 1]), (*K.shape[:-2], 1, 4))
    return jnp.concatenate([jnp.concatenate([to_picture, moved], axis=-1), last], axis=-2)


def plucker_rays(cameras: Cameras, height: int, width: int) -> Float[Array, "*b v h w 6"]:
    """The ray through each pixel's centre: direction of length 1, then moment; the reference camera at the origin."""
    K, (rotations, origins) = jnp.asarray(cameras.K, jnp.float32), relative_poses(cameras)
    row, column = jnp.mgrid[:height, :width] + 0.5
    x = (column - K[..., 0, 2, None, None]) / K[..., 0, 0, None, None]
    y = (row - K[..., 1, 2, None, None]) / K[..., 1, 1, None, None]
    seen = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)
    directions = einsum(rotations, seen, "... v i j, ... v h w j -> ... v h w i")
    directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
    moments = jnp.cross(origins[..., None, None, :], directions)
    return jnp.concatenate([directions, moments], axis=-1)


def check_cameras(cameras: Cameras, views: int) -> None:
    """Raises ValueError if there is not one finite pinhole camera with a rotation for each of the views (no batch axis)."""
    for name, array, side in (("K", cameras.K, 3), ("c2w", cameras.c2w, 4)):
        shape = np.shape(array)
        if shape != (views, side, side):
            raise UserError(f"cameras: {name} is {list(shape)}; expected [{views}, {side}, {side}], one a view")
        if not np.isfinite(array).all():
            raise UserError(f"cameras: {name} is not finite; expected numbers")
    if cameras.focus is not None and not 0 < float(cameras.focus) < np.inf:
        raise UserError(f"cameras: focus is {cameras.focus}; expected a distance above 0, or none")
    K, rotation = np.asarray(cameras.K), np.asarray(cameras.c2w, np.float64)[:, :3, :3]
    if (K[:, 0, 0] <= 0).any() or (K[:, 1, 1] <= 0).any():
        raise UserError("cameras: a focal length in K is not above 0; expected pixels")
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max()
    if not off <= 1e-3 or (np.linalg.det(rotation) < 0).any():
        raise UserError(
            "cameras: c2w holds no rotations (columns of length 1, right-handed); expected camera to world, OpenCV axes"
        )
