"""Turns a scene's description into meshes at each time and cameras that see the whole of them.

Framing: let P be every vertex at a fine row of times, relative to the middle of their box, in the axes of a camera that looks
at it. A point (x, y, z) stays inside the share m of a picture with focal length f (in half pictures) if
f |x| / (d + z) <= m and the same for y, so the distance is the largest d = f max(|x|, |y|) / m - z over all points and views.
It depends on neither the number of views nor of times: grids of any shape show the same scene.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange

from fourreal.data.render.assets import Assets
from fourreal.data.render.gltf import Primitive
from fourreal.data.render.procedural import ProceduralModel, rotation
from fourreal.data.render.scenes import Arc, Scene, Subject
from fourreal.geometry import pinhole as cameras

FRAMING_STEPS = 17  # times and views at which framing looks
DARKEST = 80.0
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Mesh:
    """A subject's primitive over time: positions float32 [t, n, 3], unit normals [t, n, 3], texture uint8 [h, w, 3]."""

    positions: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    texture: np.ndarray


@dataclass(frozen=True)
class Stage:
    """What a renderer needs: meshes, and the cameras K [3, 3] (of a one-pixel picture) and c2w [v, 4, 4]."""

    meshes: list[Mesh]
    K: np.ndarray
    c2w: np.ndarray
    distance: float


def set_stage(scene: Scene, views: int, times: int, assets: Assets) -> Stage:
    """Poses the subjects at `times` moments and places `views` cameras around them."""
    played = np.concatenate([np.linspace(0, 1, FRAMING_STEPS), np.arange(times) / times])
    acts = [_act(subject, played, assets) for subject in scene.subjects]
    if len(acts) == 2:
        _stand_apart([vertices for _, vertices in acts], scene.aside)
    framing = np.concatenate([part[:FRAMING_STEPS].reshape(-1, 3) for _, vertices in acts for part in vertices])
    target, distance = frame_points(framing, scene.arc)
    meshes = [
        _mesh(primitive, positions[FRAMING_STEPS:], texture)
        for subject, (primitives, vertices) in zip(scene.subjects, acts, strict=True)
        for primitive, positions, texture in zip(
            primitives, vertices, _textures(subject, primitives, assets), strict=True
        )
    ]
    c2w = arc_cameras(scene.arc, views, target, distance)
    return Stage(meshes, cameras.intrinsics(scene.arc.fov, 1), c2w, distance)


def arc_cameras(arc: Arc, views: int, target: np.ndarray, distance: float) -> np.ndarray:
    """The c2w [v, 4, 4] of `views` cameras evenly along the arc, both ends included."""
    share = np.linspace(0, 1, views)
    distance = distance * (1 + arc.dolly * share - min(arc.dolly, 0.0))
    return cameras.orbit_arc(target, distance, arc.azimuth + arc.sweep * share, arc.elevation + arc.climb * share)


def frame_points(points: np.ndarray, arc: Arc) -> tuple[np.ndarray, float]:
    """Where to look [3], and from how far, so that every point [n, 3] is inside the margin of every view of the arc.

    Starting at the middle of the points' box, the target moves four times by what would centre them in the views on average.
    """
    focal = 2 * cameras.intrinsics(arc.fov, 1)[0, 0]
    axes = arc_cameras(arc, FRAMING_STEPS, np.zeros(3), 1.0)[:, :3, :3]
    # f |x| / m - z is linear on each side of each view: only the points farthest in those directions matter, for any target
    sides = [focal * sign * axes[..., k] / arc.margin - axes[..., 2] for sign in (-1, 1) for k in (0, 1)]
    points = points[np.unique((points @ np.concatenate(sides).T).argmax(0))]
    target = (points.min(0) + points.max(0)) / 2
    tried = []
    for _ in range(5):
        seen = (points - target) @ axes  # [v, n, 3] in each camera's axes
        distance = float((focal * np.abs(seen[..., :2]).max(-1) / arc.margin - seen[..., 2]).max())
        tried.append((distance, target))
        place = seen[..., :2] / (seen[..., 2:] + distance)
        middle = (place.min(1) + place.max(1)) / 2 * distance
        # each view knows two of the three directions: its mean says two thirds of the way
        target = target + 1.5 * np.einsum("vik,vk->i", axes[..., :2], middle) / len(axes)
    distance, target = min(tried, key=lambda item: item[0])
    return target, distance


def _act(subject: Subject, played: np.ndarray, assets: Assets) -> tuple[list[Primitive], list[np.ndarray]]:
    """A subject's primitives and their vertices [t, n, 3] when `played` of its span has gone by: on the ground, in place."""
    model = assets.model(subject.file) if subject.file else ProceduralModel(subject.clip, subject.seed)
    clip = model.clips[subject.clip]
    phase = subject.phase + subject.span * played
    phase = phase % 1.0 if clip.loop else np.clip(phase, 0, 1)
    vertices = model.pose(subject.clip, phase * clip.seconds)
    fine = np.concatenate([part[:FRAMING_STEPS] for part in vertices], 1)
    low, high = fine.min((0, 1)), fine.max((0, 1))
    size = max(float(np.median(np.ptp(fine, 1).max(-1))), 1e-6)
    middle = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    turns = rotation((0, 0, 1), np.radians(subject.yaw + subject.turn * played))
    steps = np.append(subject.walk, 0) * (played - 0.5)[:, None]
    placed = [
        ((part - middle) * (subject.size / size)) @ np.swapaxes(turns, -1, -2) + steps[:, None] for part in vertices
    ]
    return model.primitives, [part.astype(np.float32) for part in placed]


def _stand_apart(subjects: list[list[np.ndarray]], aside: float) -> None:
    """Moves two subjects along a direction, in place, until a plane across it just parts them at all times."""
    direction = np.array([np.cos(np.radians(aside)), np.sin(np.radians(aside)), 0], np.float32)
    for sign, parts in zip((-1, 1), subjects, strict=True):
        reach = max(float((part @ (-sign * direction)).max()) for part in parts)
        for part in parts:
            part += sign * (reach + 0.02) * direction


def _mesh(primitive: Primitive, positions: np.ndarray, texture: np.ndarray) -> Mesh:
    return Mesh(positions, smooth_normals(primitive, positions), primitive.triangles, primitive.uv, texture)


def smooth_normals(primitive: Primitive, positions: np.ndarray) -> np.ndarray:
    """Unit normals [t, n, 3]: the sum of the triangles' normals by area, over vertices that are one point of the surface.

    These are vertices at one place throughout; where the file has normals, only those whose normals agree, so that hard
    edges stay hard.
    """
    corner = positions[:, primitive.triangles]
    face = np.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
    keys = np.rint(positions[0] * 1e4)
    if primitive.normals is not None:
        keys = np.concatenate([keys, np.rint(primitive.normals * 4)], 1)
    points, group = np.unique(keys, axis=0, return_inverse=True)
    sums = np.zeros((len(positions), len(points), 3), np.float32)
    for k in range(3):
        np.add.at(sums, (slice(None), group.ravel()[primitive.triangles[:, k]]), face)
    sums /= np.maximum(np.linalg.norm(sums, axis=-1, keepdims=True), 1e-12)
    return sums[:, group.ravel()]


def _textures(subject: Subject, primitives: list[Primitive], assets: Assets) -> list[np.ndarray]:
    textures = [primitive.texture for primitive in primitives]
    if subject.texture:
        textures = [assets.model(subject.texture).primitives[0].texture] * len(textures)
    return [turn_hue(brightened(texture), subject.hue) for texture in textures]


def brightened(pixels: np.ndarray) -> np.ndarray:
    """A dark texture made lighter, by at most 2.5 times, until its mean luma is DARKEST: black subjects teach nothing."""
    luma = float((pixels.reshape(-1, 3) @ LUMA).mean())
    gain = min(max(DARKEST / max(luma, 1.0), 1.0), 2.5)
    return pixels if gain == 1 else np.rint(pixels * gain).clip(0, 255).astype(np.uint8)


def turn_hue(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turns the hue of uint8 [h, w, 3] about the grey axis and keeps each pixel's luma."""
    if degrees == 0:
        return pixels
    flat = rearrange(pixels, "h w c -> (h w) c") / 255.0
    turned = flat @ rotation((1, 1, 1), np.radians(degrees)).T
    turned += ((flat - turned) @ LUMA)[:, None]
    return rearrange(np.rint(turned * 255).clip(0, 255).astype(np.uint8), "(h w) c -> h w c", h=len(pixels))
