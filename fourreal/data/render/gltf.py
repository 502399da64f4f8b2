"""Reads binary glTF files (`.glb`) into numpy: morph targets, skins and moving nodes, at any time of a clip.

What is read: triangle meshes, float or quantised (KHR_mesh_quantization) and sparse accessors, node hierarchies, skins with
one set of joints, morph targets, animations (STEP and LINEAR; of CUBICSPLINE the values, blended linearly), and the base
colour as texture and factor. Everything is turned from glTF's y-up axes to z-up: (x, y, z) -> (x, -z, y).

At each time a vertex is `G (base + sum_i w_i delta_i)`, with G the transform of its node, or of a skinned mesh the blend
`sum_j weight_j G_joint(j) B_j` with inverse bind matrices B. The joints' own transforms apply and the mesh node's does not.
"""

import functools
import io
import json
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import einsum, rearrange

from fourreal.errors import MissingFile, UserError

DTYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
Z_UP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
MOST_VERTICES, MOST_SECONDS = 2**24, 2**16
REST = {"translation": (0, 0, 0), "rotation": (0, 0, 0, 1), "scale": (1, 1, 1)}


@dataclass(frozen=True)
class Primitive:
    """Triangles int32 [m, 3] under one texture uint8 [h, w, 3]; uv float32 [n, 2] with v down; normals [n, 3] or None."""

    triangles: np.ndarray
    uv: np.ndarray
    normals: np.ndarray | None
    texture: np.ndarray


@dataclass(frozen=True)
class Clip:
    """One animation: its length and whether its end meets its beginning."""

    seconds: float
    loop: bool


class AnimatedModel:
    """The meshes of one `.glb` and its clips. Raises FileNotFoundError, or ValueError for what is no usable glTF binary."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        with _damage(self.path):
            self._read()

    def _read(self) -> None:
        self._document, self._binary = _read_container(self.path)
        self._nodes = self._document.get("nodes", [])
        self._parents = {child: i for i, node in enumerate(self._nodes) for child in node.get("children", [])}
        self._parts = [
            (i, self._document["meshes"][node["mesh"]], primitive)
            for i, node in enumerate(self._nodes)
            if "mesh" in node
            for primitive in self._document["meshes"][node["mesh"]]["primitives"]
            if primitive.get("mode", 4) == 4
        ]
        if not self._parts:
            raise UserError(f"{self.path} has no triangle mesh in it: export at least one mesh")
        self._animations = {
            animation.get("name", str(i)): animation for i, animation in enumerate(self._document.get("animations", []))
        }
        self.clips = {name: self._clip(animation) for name, animation in self._animations.items()}

    @functools.cached_property
    def primitives(self) -> list[Primitive]:
        """The fixed part of each primitive, in the order of `pose`."""
        with _damage(self.path):
            return [self._primitive(part) for _, _, part in self._parts]

    @np.errstate(all="ignore")
    def check(self) -> None:
        """Reads everything once; ValueError for what cannot be drawn."""
        for clip, about in self.clips.items():
            for part, positions in zip(self.primitives, self.pose(clip, np.linspace(0, about.seconds, 3)), strict=True):
                counts = {positions.shape[1], len(part.uv), len(part.uv if part.normals is None else part.normals)}
                inside = part.triangles.size and part.triangles.min() >= 0 and part.triangles.max() < min(counts)
                extent = np.ptp(positions, (0, 1)).max()
                if len(counts) > 1 or not inside or not 0 < extent < np.inf:
                    raise UserError(
                        f"{self.path} cannot be drawn: clip '{clip}' has vertices that are missing, not finite or all in "
                        "one place; export it again"
                    )

    def pose(self, clip: str, seconds: np.ndarray) -> list[np.ndarray]:
        """The vertices of each primitive, float32 [t, n, 3], z up, at the times [t] of a clip (clamped to its ends)."""
        if clip not in self._animations:
            raise UserError(f"{self.path} has no clip '{clip}': its clips are {sorted(self.clips)}")
        seconds = np.asarray(seconds, np.float32)
        with _damage(self.path):
            channels = self._channels(self._animations[clip], seconds)
            transforms = functools.cache(functools.partial(self._transform, channels, len(seconds)))
            return [self._vertices(channels, transforms, len(seconds), *part) @ Z_UP.T for part in self._parts]

    # --- files and accessors

    def _bytes(self, view: int) -> tuple[memoryview, int | None]:
        entry = self._document["bufferViews"][view]
        start = entry.get("byteOffset", 0)
        if start < 0 or start + entry["byteLength"] > len(self._binary):
            raise UserError(f"buffer view {view} lies outside the file")
        return memoryview(self._binary)[start : start + entry["byteLength"]], entry.get("byteStride")

    def _strided(self, view: int, start: int, count: int, dtype, width: int) -> np.ndarray:
        data, stride = self._bytes(view)
        item = np.dtype(dtype).itemsize
        return np.ndarray((count, width), dtype, data, start, (stride or item * width, item))

    def _accessor(self, index: int) -> np.ndarray:
        """An accessor as [count, width]: integers as they are, normalised integers as floats."""
        entry = self._document["accessors"][index]
        dtype, width = DTYPES[entry["componentType"]], WIDTHS[entry["type"]]
        if "bufferView" not in entry and entry["count"] > MOST_VERTICES:
            raise UserError(f"{entry['count']} values without data")
        if "bufferView" not in entry:
            values = np.zeros((entry["count"], width), dtype)
        else:
            values = self._strided(entry["bufferView"], entry.get("byteOffset", 0), entry["count"], dtype, width)
        if "sparse" in entry:
            count, at, new = (entry["sparse"][key] for key in ("count", "indices", "values"))
            rows = self._strided(at["bufferView"], at.get("byteOffset", 0), count, DTYPES[at["componentType"]], 1)[:, 0]
            values = values.copy()
            values[rows] = self._strided(new["bufferView"], new.get("byteOffset", 0), count, dtype, width)
        if entry.get("normalized"):
            return np.maximum(values.astype(np.float32) / np.iinfo(dtype).max, -1)
        return values

    def _primitive(self, part: dict) -> Primitive:
        attributes = part["attributes"]
        count = self._document["accessors"][attributes["POSITION"]]["count"]
        indices = self._accessor(part["indices"])[:, 0] if "indices" in part else np.arange(count)
        uv = self._accessor(attributes["TEXCOORD_0"]) if "TEXCOORD_0" in attributes else np.zeros((count, 2))
        normals = (self._accessor(attributes["NORMAL"]) @ Z_UP.T) if "NORMAL" in attributes else None
        triangles = rearrange(indices.astype(np.int32), "(m corner) -> m corner", corner=3)
        return Primitive(triangles, uv.astype(np.float32), normals, self._texture(part.get("material")))

    def _texture(self, material: int | None) -> np.ndarray:
        from PIL import Image

        surface = self._document["materials"][material].get("pbrMetallicRoughness", {}) if material is not None else {}
        factor = np.array(surface.get("baseColorFactor", [0.8 if material is None else 1.0] * 4)[:3])
        pixels = np.full((1, 1, 3), 255.0)
        if "baseColorTexture" in surface:
            source = self._document["textures"][surface["baseColorTexture"]["index"]].get("source")
            image = self._document["images"][source] if source is not None else {}
            if "bufferView" not in image:
                raise UserError(
                    f"{self.path} keeps a texture outside the file: export it as one .glb with textures inside"
                )
            with warnings.catch_warnings(action="ignore"):  # of large pictures
                picture = Image.open(io.BytesIO(self._bytes(image["bufferView"])[0]), formats=("PNG", "JPEG", "WEBP"))
                pixels = np.asarray(picture.convert("RGB"), np.float64)
        return np.rint(pixels * factor).clip(0, 255).astype(np.uint8)

    # --- animation

    def _clip(self, animation: dict) -> Clip:
        ends = [self._accessor(sampler["input"]).max() for sampler in animation["samplers"]]
        if not 0 <= max(ends) < MOST_SECONDS:
            raise UserError(f"a clip of {max(ends)} seconds")
        return Clip(float(max(ends)), animation.get("extras", {}).get("loop", True))

    def _channels(self, animation: dict, seconds: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
        """(node, path) -> values [t, width] at the given times."""
        channels = {}
        for channel in animation["channels"]:
            sampler, node = animation["samplers"][channel["sampler"]], channel["target"].get("node")
            times = self._accessor(sampler["input"])[:, 0]
            mode, path = sampler.get("interpolation", "LINEAR"), channel["target"]["path"]
            per_key = 3 if mode == "CUBICSPLINE" else 1  # in-tangent, value, out-tangent
            values = self._accessor(sampler["output"]).astype(np.float32)
            values = rearrange(values, "(k part i) j -> k part (i j)", k=len(times), part=per_key)[:, per_key // 2]
            if node is not None:
                channels[node, path] = _interpolate(times, values, seconds, mode == "STEP", path == "rotation")
        return channels

    def _transform(self, channels: dict, steps: int, node: int) -> np.ndarray:
        """The transform of a node into the scene, [t, 4, 4]."""
        entry = self._nodes[node]
        local = np.tile(np.eye(4, dtype=np.float32), (steps, 1, 1))
        if "matrix" in entry:
            local[:] = rearrange(np.array(entry["matrix"], np.float32), "(column row) -> row column", row=4)
        else:
            move, turn, scale = (
                channels.get(
                    (node, path), np.broadcast_to(np.array(entry.get(path, rest), np.float32), (steps, len(rest)))
                )
                for path, rest in REST.items()
            )
            local[:, :3, :3] = rotation_from_quaternion(turn) * scale[:, None, :]
            local[:, :3, 3] = move
        parent = self._parents.get(node)
        return local if parent is None else self._transform(channels, steps, parent) @ local

    def _vertices(self, channels: dict, transforms, steps: int, node: int, mesh: dict, part: dict) -> np.ndarray:
        attributes, targets = part["attributes"], part.get("targets", [])
        base = self._accessor(attributes["POSITION"]).astype(np.float32)
        positions = np.broadcast_to(base, (steps, *base.shape))
        if targets:
            rest = self._nodes[node].get("weights", mesh.get("weights", [0.0] * len(targets)))
            weights = channels.get((node, "weights"), np.tile(np.array(rest, np.float32), (steps, 1)))
            deltas = {i: self._accessor(t["POSITION"]) for i, t in enumerate(targets) if "POSITION" in t}
            used = [i for i in deltas if np.any(weights[:, i])]
            if used:
                stacked = np.stack([deltas[i] for i in used]).astype(np.float32)
                positions = base + einsum(weights[:, used], stacked, "t i, i n c -> t n c")
        if "skin" not in self._nodes[node]:
            matrix = transforms(node)
            return einsum(matrix[:, :3, :3], positions, "t i j, t n j -> t n i") + matrix[:, None, :3, 3]
        skin = self._document["skins"][self._nodes[node]["skin"]]
        bind = np.tile(np.eye(4, dtype=np.float32), (len(skin["joints"]), 1, 1))
        if "inverseBindMatrices" in skin:
            bind = rearrange(self._accessor(skin["inverseBindMatrices"]), "j (column row) -> j row column", row=4)
        joints = np.stack([transforms(joint) for joint in skin["joints"]], 1) @ bind
        share = self._accessor(attributes["WEIGHTS_0"]).astype(np.float32)
        share = share / np.maximum(share.sum(1, keepdims=True), 1e-8)
        index = self._accessor(attributes["JOINTS_0"]).astype(np.int64)
        matrix = einsum(joints[:, index], share, "t n k i j, n k -> t n i j")
        return einsum(matrix[..., :3], positions, "t n i j, t n j -> t n i")[..., :3] + matrix[..., :3, 3]


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong in a file, as one line that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FileNotFoundError) or str(error).startswith(str(path)):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged ({reason}): expected glTF 2.0; export it again as .glb") from error


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4] in the order x, y, z, w."""
    x, y, z, w = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2).astype(np.float32)


def _interpolate(times, values, seconds, step: bool, rotation: bool) -> np.ndarray:
    """Values [k, width] at key times [k], blended at `seconds` [t]; short arcs and unit length for quaternions."""
    after = np.clip(np.searchsorted(times, seconds, side="right"), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    span = np.maximum(times[after] - times[before], 1e-9)
    share = np.clip((seconds - times[before]) / span, 0, 1)[:, None].astype(np.float32)
    if step:
        share = np.floor(share)
    start, end = values[before], values[after]
    if rotation:
        end = end * np.where((start * end).sum(1, keepdims=True) < 0, -1, 1)
    return start + share * (end - start)


def _read_container(path: Path) -> tuple[dict, bytes]:
    if not path.is_file():
        raise MissingFile(f"there is no file {path}")
    data = path.read_bytes()
    if data[:4] != b"glTF" or len(data) < 20:
        raise UserError(f"{path} is not a binary glTF file: export it as .glb")
    chunks, at = {}, 12
    while at + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, at)
        chunks.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length
    document = json.loads(chunks[b"JSON"])
    unknown = [
        name
        for name in document.get("extensionsRequired", [])
        if name != "KHR_mesh_quantization" and not name.startswith("KHR_materials")
    ]
    if unknown:
        raise UserError(f"{path} needs {', '.join(unknown)}, which is not read here: export it without compression")
    return document, chunks.get(b"BIN\0", b"")
