"""Ground and sky of a view, worked out pixel by pixel instead of rasterised: exact at any angle, and no triangle to lose.

The ray of a pixel meets the ground z = 0 at depth t = -o_z / r_z where r_z < 0. The ground's texture is read from a pyramid
of halved copies at the level log2 of the texels under a pixel, linearly within and between levels. Sky and ground blend
into the horizon's colour with height and with distance.
"""

import numpy as np
from einops import rearrange, reduce

from fourreal.data.render.assets import Assets
from fourreal.data.render.drawing import turn_hue
from fourreal.data.render.procedural import make_texture, rotation
from fourreal.data.render.scenes import Ground, Scene
from fourreal.geometry import pinhole as cameras

FAR = 200.0  # farther ground counts as sky: depth 0
OVERSAMPLING = 2


def draw_backdrop(
    scene: Scene, K: np.ndarray, c2w: np.ndarray, size: tuple[int, int], assets: Assets
) -> tuple[np.ndarray, np.ndarray]:
    """One view of `size` (height, width) without subjects: RGB float32 [h, w, 3] in [0, 255], z depth [h, w], 0 in the sky."""
    fine = [side * OVERSAMPLING for side in size]
    zoom = np.diag([OVERSAMPLING, OVERSAMPLING, 1]).astype(np.float32)
    rays = cameras.pixel_rays(zoom @ K, c2w, *fine).astype(np.float32)
    colour = _sky(scene, rays)
    depth = ground_depth(rays, c2w)
    on_ground = depth > 0
    points = c2w[:2, 3] + depth[on_ground, None] * rays[on_ground, :2]
    texels = texels_per_pixel(rays[on_ground], depth[on_ground], zoom @ K, scene.ground.tile)
    ground = sample_pyramid(_pyramid(scene.ground, assets), _texture_place(points, scene.ground), texels)
    ground *= sunlight(scene)
    clear = np.exp(-depth[on_ground, None] / scene.sky.haze / max(1.0, c2w[2, 3]))
    horizon = 255 * np.array(scene.sky.horizon, np.float32)
    colour[on_ground] = horizon + clear * (ground - horizon)
    colour = reduce(colour, "(h i) (w j) c -> h w c", "mean", i=OVERSAMPLING, j=OVERSAMPLING)
    return colour, ground_depth(cameras.pixel_rays(K, c2w, *size), c2w)


def sun_direction(scene: Scene) -> np.ndarray:
    """The unit vector towards the sun."""
    azimuth, elevation = np.radians([scene.sun.azimuth, scene.sun.elevation])
    flat = np.cos(elevation)
    return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], np.float32)


def sunlight(scene: Scene) -> float:
    """How bright the ground is out of the shadow, 1 = its texture's own brightness; in the shadow it is `ambient`."""
    return scene.sun.ambient + (1 - scene.sun.ambient) * float(sun_direction(scene)[2])


def ground_depth(rays: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """The z depth at which rays [h, w, 3] meet the ground, 0 where they miss it or meet it beyond FAR."""
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 2] < 0, -c2w[2, 3] / rays[..., 2], 0.0)
    return np.where(depth < FAR, depth, 0.0).astype(np.float32)


def texels_per_pixel(rays: np.ndarray, depth: np.ndarray, K: np.ndarray, tile: float) -> np.ndarray:
    """Repeats of the texture under a pixel: the geometric mean of its footprint's sides, which balances blur and flicker.

    Across the view a pixel covers depth / f; along it, that over the sine of the angle at which the ray meets the ground.
    """
    across = depth / K[0, 0]
    slant = -rays[:, 2] / np.linalg.norm(rays, axis=1)
    return across / np.sqrt(slant) / tile


def sample_pyramid(pyramid: list[np.ndarray], place: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Trilinear look-up: colours float32 [n, 3] at places [n, 2] (in repeats) for pixels that cover `repeats` [n]."""
    level = np.log2(np.maximum(repeats * len(pyramid[0]), 1e-6)).clip(0, len(pyramid) - 1).astype(np.float32)
    colour = np.zeros((len(place), 3), np.float32)
    for i, picture in enumerate(pyramid):
        share = np.clip(1 - np.abs(level - i), 0, 1)
        used = np.flatnonzero(share)
        if len(used):
            colour[used] += share[used, None] * _bilinear(picture, place[used])
    return colour


def _bilinear(picture: np.ndarray, place: np.ndarray) -> np.ndarray:
    side = len(picture)
    texel = place * side - 0.5
    corner = np.floor(texel).astype(np.int32)
    x, y = (texel - corner).astype(np.float32).T[..., None]
    (left, top), (right, bottom) = corner.T % side, (corner.T + 1) % side
    above = picture[top, left] * (1 - x) + picture[top, right] * x
    below = picture[bottom, left] * (1 - x) + picture[bottom, right] * x
    return above * (1 - y) + below * y


def _texture_place(points: np.ndarray, ground: Ground) -> np.ndarray:
    return (points @ rotation((0, 0, 1), np.radians(ground.yaw))[:2, :2].T.astype(np.float32)) / ground.tile


def _pyramid(ground: Ground, assets: Assets) -> list[np.ndarray]:
    picture = assets.ground(ground.file) if ground.file else make_texture(np.random.default_rng(ground.seed))
    picture = turn_hue(picture, ground.hue).astype(np.float32)
    side = 1 << (min(picture.shape[:2]).bit_length() - 1)
    pyramid = [picture[:side, :side]]
    while len(pyramid[-1]) > 1:
        pyramid.append(reduce(pyramid[-1], "(h i) (w j) c -> h w c", "mean", i=2, j=2))
    return pyramid


def _sky(scene: Scene, rays: np.ndarray) -> np.ndarray:
    height = rays[..., 2] / np.linalg.norm(rays, axis=-1)
    share = np.sqrt(np.clip(height, 0, 1))[..., None].astype(np.float32)
    horizon, zenith = (255 * np.array(colour, np.float32) for colour in (scene.sky.horizon, scene.sky.zenith))
    return rearrange(horizon, "c -> 1 1 c") * (1 - share) + zenith * share
