"""Licence-free subjects made from a seed: textured primitives and articulated figures in rigid and bending motion.

All motion is a function of the phase with period 1. Three kinds:
    tumble   one primitive turns about an axis of its own and hops: z = h |sin(2 pi k phase)|
    bend     a tall primitive bends sideways by the angle a sin(2 pi phase) z and twists along its height
    figure   a body with limbs of two links each; every joint swings by a sin(2 pi k phase + offset), forward kinematics
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange

from fourreal.data.render.gltf import Clip, Primitive
from fourreal.errors import UserError

KINDS = ("tumble", "bend", "figure")


@dataclass(frozen=True)
class Shape:
    """A closed surface: vertices [n, 3], triangles [m, 3], uv [n, 2]."""

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray


def revolve(profile: np.ndarray, around: int = 16) -> Shape:
    """Turns a curve [k, 2] of (radius, z) about the z axis."""
    angle = np.linspace(0, 2 * np.pi, around + 1)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    vertices = profile[:, None, :1] * circle + profile[:, None, 1:] * np.array([0, 0, 1])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(profile, axis=0), axis=1))])
    u, v = np.meshgrid(angle / np.pi, length / length[-1])
    return Shape(rearrange(vertices, "k a c -> (k a) c"), _grid_triangles(len(profile), around + 1), _pairs(u, v))


def sphere() -> Shape:
    """A ball of radius 1/2."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 11)
    return revolve(np.stack([np.cos(angle), np.sin(angle)], -1) / 2)


def capsule(radius: float = 0.25) -> Shape:
    """A rod of length 1 with round ends."""
    angle = np.linspace(0, np.pi / 2, 5)
    cap = np.stack([np.cos(angle), np.sin(angle)], -1) * radius
    straight = np.stack([np.full(7, radius), np.linspace(-0.5 + radius, 0.5 - radius, 7)], -1)[1:-1]
    bottom = cap[::-1] * (1, -1) - (0, 0.5 - radius)
    return revolve(np.concatenate([bottom, straight, cap + np.array([0, 0.5 - radius])]))


def cone() -> Shape:
    """A cone of height 1 with its base closed."""
    side = np.stack([np.linspace(0.45, 1e-3, 6), np.linspace(-0.5, 0.5, 6)], -1)
    return revolve(np.concatenate([[[1e-3, -0.5]], side]))


def cylinder() -> Shape:
    """A cylinder of height 1 with both ends closed."""
    side = np.stack([np.full(6, 0.35), np.linspace(-0.5, 0.5, 6)], -1)
    return revolve(np.concatenate([[[1e-3, -0.5]], side, [[1e-3, 0.5]]]))


def torus() -> Shape:
    """A ring of outer radius 1/2 that stands upright."""
    angle = np.linspace(0, 2 * np.pi, 11)
    ring = revolve(np.stack([0.36 + 0.14 * np.cos(angle), 0.14 * np.sin(angle)], -1), around=20)
    return Shape(ring.vertices[:, [0, 2, 1]] * (1, -1, 1), ring.triangles, ring.uv * (2, 1))


def box(height: float = 1.0, steps: int = 6) -> Shape:
    """A box of unit base and given height, each face cut into `steps` strips along z."""
    faces = []
    ramp, across = np.linspace(-0.5, 0.5, steps + 1), np.array([-0.5, 0.5])
    z, x = np.meshgrid(ramp, across, indexing="ij")
    for turn in range(4):
        c, s = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn]
        faces.append((np.stack([c * x - s * -0.5, s * x + c * -0.5, z * height], -1), x, z))
    for end in (-1, 1):
        faces.append((np.stack([x * end, z, np.full_like(x, end * height / 2)], -1), x, z))
    vertices = [rearrange(points, "i j c -> (i j) c") for points, _, _ in faces]
    triangles = [_grid_triangles(steps + 1, 2) + i * len(vertices[0]) for i in range(6)]
    return Shape(
        np.concatenate(vertices), np.concatenate(triangles), np.concatenate([_pairs(x, z) for _, x, z in faces])
    )


SHAPES = {"box": box, "sphere": sphere, "torus": torus, "cone": cone, "cylinder": cylinder, "capsule": capsule}
TALL = {"box": box, "cone": cone, "cylinder": cylinder, "capsule": capsule}


class ProceduralModel:
    """A subject made from a seed, with the same face as `AnimatedModel`: `primitives`, `clips`, `pose`."""

    def __init__(self, kind: str, seed: int):
        if kind not in KINDS:
            raise UserError(f"there is no procedural kind '{kind}': choose one of {', '.join(KINDS)}")
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        self.clips = {kind: Clip(1.0, True)}
        self._shapes, self._move = {"tumble": _tumble, "bend": _bend, "figure": _figure}[kind](rng)
        texture = make_texture(rng)
        second = make_texture(rng) if rng.random() < 0.5 else texture
        self.primitives = [
            Primitive(
                shape.triangles.astype(np.int32), shape.uv.astype(np.float32), None, texture if i == 0 else second
            )
            for i, shape in enumerate(self._shapes)
        ]

    def pose(self, clip: str, seconds: np.ndarray) -> list[np.ndarray]:
        """The vertices of each primitive, float32 [t, n, 3], at phases `seconds` [t]."""
        moved = [self._move(i, shape.vertices, np.asarray(seconds)) for i, shape in enumerate(self._shapes)]
        return [vertices.astype(np.float32) for vertices in moved]


def rotation(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices [*, 3, 3] about one axis [3] by angles [*] in radians (Rodrigues)."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.asarray(angle)[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def make_texture(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A seamless two- or three-coloured pattern, uint8 [size, size, 3]."""
    row, column = np.mgrid[:size, :size] / size
    waves = rng.integers(1, 4, 2)
    kind = rng.integers(5)
    if kind == 0:
        share = (np.floor(row * 2 * waves[0]) + np.floor(column * 2 * waves[1])) % 2
    elif kind == 1:
        share = (np.sin(2 * np.pi * (row * waves[0] + column * waves[1])) > 0).astype(float)
    elif kind == 2:
        n = waves[0] + 1
        share = (np.hypot((row * n) % 1 - 0.5, (column * n) % 1 - 0.5) < 0.32).astype(float)
    else:
        spectrum = np.fft.fft2(rng.normal(size=(size, size)))
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size, 1 / size), np.fft.fftfreq(size, 1 / size)))
        noise = np.fft.ifft2(spectrum / np.maximum(frequency, 1) ** (2 if kind == 3 else 1.3) * (frequency > 0)).real
        share = np.clip(0.5 + noise / (2.5 * noise.std()), 0, 1)
        share = share if kind == 3 else np.round(share * 3) / 3
    colours = _hues(rng)
    pixels = colours[0] * (1 - share[..., None]) + colours[1] * share[..., None]
    if rng.random() < 0.3:
        pixels = np.where(((row * waves[1]) % 1 < 0.12)[..., None], colours[2], pixels)
    return np.rint(pixels * 255).clip(0, 255).astype(np.uint8)


def _hues(rng: np.random.Generator) -> np.ndarray:
    """Three colours apart in hue and brightness, [3, 3] in [0, 1]."""
    hue = rng.random() + np.array([0, rng.uniform(0.2, 0.8), rng.random()])
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] + np.array([0, 1 / 3, 2 / 3])))
    value = np.array([rng.uniform(0.7, 1), rng.uniform(0.25, 0.8), rng.uniform(0.1, 1)])[:, None]
    return value * (1 - (saturation := rng.uniform(0.35, 0.95)) + saturation * wheel)


def _tumble(rng: np.random.Generator):
    shape = SHAPES[rng.choice(list(SHAPES))]()
    stretch = rng.uniform(0.6, 1.3, 3)
    axis, turns = rng.normal(size=3), rng.choice([-1, 1])
    hop, hops = rng.uniform(0, 0.4), rng.integers(1, 3)

    def move(_, vertices, phase):
        turned = (vertices * stretch) @ np.swapaxes(rotation(axis, 2 * np.pi * turns * phase), -1, -2)
        turned[..., 2] += (hop * np.abs(np.sin(np.pi * hops * phase)))[:, None]
        return turned

    return [shape], move


def _bend(rng: np.random.Generator):
    shape = TALL[rng.choice(list(TALL))]()
    width, amount = rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.1)
    twist, lean = rng.uniform(-1.5, 1.5), rng.uniform(0, 2 * np.pi)

    def move(_, vertices, phase):
        points = vertices * (width, width, 1) + (0, 0, 0.5)
        height = points[:, 2]
        points = np.einsum(
            "tnij,nj->tni", rotation((0, 0, 1), twist * np.sin(2 * np.pi * phase)[:, None] * height), points
        )
        # along a circle of curvature k the point at height h sits at ((1 - cos k h) / k, sin(k h) / k)
        curvature = amount * np.sin(2 * np.pi * phase)[:, None] + 1e-6
        aside = np.cos(lean) * points[..., 0] + np.sin(lean) * points[..., 1]
        across = -np.sin(lean) * points[..., 0] + np.cos(lean) * points[..., 1]
        reach = (1 - np.cos(curvature * height)) / curvature + aside * np.cos(curvature * height)
        up = np.sin(curvature * height) / curvature - aside * np.sin(curvature * height)
        x, y = np.cos(lean) * reach - np.sin(lean) * across, np.sin(lean) * reach + np.cos(lean) * across
        return np.stack([x, y, up], -1)

    return [shape], move


def _figure(rng: np.random.Generator):
    limbs = int(rng.integers(2, 6))
    body = SHAPES[rng.choice(["box", "sphere", "capsule", "cylinder"])]()
    link, thick = (capsule(0.3), 1.5) if rng.random() < 0.6 else (box(), 1.0)
    size = rng.uniform(0.4, 0.65, 3) + np.array([0, 0, rng.uniform(0, 0.3)])
    width = rng.uniform(0.16, 0.28)
    length = rng.uniform(0.25, 0.4, 2)
    angles = 2 * np.pi * (np.arange(limbs) + rng.uniform(-0.2, 0.2, limbs)) / limbs + rng.uniform(0, 6)
    droop, swing = rng.uniform(0.2, 2.4, limbs), rng.uniform(0.4, 0.9, (limbs, 2))
    offset, beat = rng.uniform(0, 2 * np.pi, (limbs, 2)), rng.integers(1, 3)
    sway = rng.uniform(0.1, 0.6)

    def move(i, vertices, phase):
        wave = 2 * np.pi * phase
        whole = np.swapaxes(rotation((0, 0, 1), sway * np.sin(wave)), -1, -2)
        if i == 0:
            return (vertices * size) @ whole
        limb, second = divmod(i - 1, 2)
        outward = np.array([np.cos(angles[limb]), np.sin(angles[limb]), 0])
        hinge = np.cross((0, 0, 1), outward)
        upper = rotation(hinge, droop[limb] + swing[limb, 0] * np.sin(beat * wave + offset[limb, 0]))
        lower = upper @ rotation(hinge, 0.4 + swing[limb, 1] * np.sin(beat * wave + offset[limb, 1]))
        rod = vertices * (thick * width, thick * width, 1.25 * length[second]) + (
            0,
            0,
            length[second] / 2,
        )  # links overlap
        points = rod @ np.swapaxes(lower if second else upper, -1, -2)
        if second:
            points = points + length[0] * upper[:, None, :, 2]
        return (points + outward * size * 0.5) @ whole

    return [body] + [link] * (2 * limbs), move


def _grid_triangles(rows: int, columns: int) -> np.ndarray:
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    quads = np.stack([corner, corner + 1, corner + columns + 1, corner, corner + columns + 1, corner + columns], -1)
    return rearrange(quads, "q (two corner) -> (q two) corner", corner=3)


def _pairs(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.stack([u.ravel(), v.ravel()], -1)
