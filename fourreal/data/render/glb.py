"""Writes an animated mesh as one binary glTF file (`.glb`): morph targets, quantised, textures inside.

Each key frame of each clip is one morph target; a clip's `weights` animation turns on one target after the other, linearly
blended. With KHR_mesh_quantization and s, o the scale and translation of the node (shared by all primitives)

    position = o + s (base / 32767 + sum_i w_i delta_i / 127),    base int16, delta int8,

where `base` is the middle of each vertex's range over all key frames, and target i, stretched to the full int8 range, is
turned on with weight w_i = max |delta_i| / s <= 1 instead of 1. The error of a position is at most s w_i / 254.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
COMPONENT = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
LINEAR, LINEAR_MIPMAP_LINEAR, REPEAT = 9729, 9987, 10497


@dataclass(frozen=True)
class KeyFrames:
    """A clip: the times [k] of its key frames in seconds from 0, and whether it returns to the first at `seconds`."""

    times: np.ndarray
    seconds: float
    loop: bool


@dataclass(frozen=True)
class MorphPrimitive:
    """Triangles [m, 3] under one texture (JPEG or PNG bytes); positions [k, n, 3] of each clip, y up; uv [n, 2], v down."""

    positions: dict[str, np.ndarray]
    normals: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    texture: bytes


class _Buffer:
    """The binary chunk and the accessors into it."""

    def __init__(self):
        self.data, self.views, self.accessors = bytearray(), [], []

    def view(self, data: bytes, **fields) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **fields})
        self.data += data
        return len(self.views) - 1

    def vertices(self, values: np.ndarray, normalized: bool = False, bounds: bool = False) -> int:
        """One vertex attribute [n, 2 or 3], each vertex padded to four bytes as glTF demands."""
        pad = -values.shape[1] * values.itemsize % 4 // values.itemsize
        data = np.pad(values, ((0, 0), (0, pad)))
        view = self.view(data.tobytes(), byteStride=data.shape[1] * data.itemsize, target=ARRAY_BUFFER)
        return self._accessor(view, values, f"VEC{values.shape[1]}", normalized, bounds)

    def scalars(self, values: np.ndarray, bounds: bool = False, **fields) -> int:
        return self._accessor(self.view(values.tobytes(), **fields), values[:, None], "SCALAR", False, bounds)

    def _accessor(self, view: int, values: np.ndarray, kind: str, normalized: bool, bounds: bool) -> int:
        accessor = {
            "bufferView": view,
            "componentType": COMPONENT[str(values.dtype)],
            "count": len(values),
            "type": kind,
        }
        if normalized:
            accessor["normalized"] = True
        if bounds:
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def write_glb(
    path: Path, name: str, primitives: list[MorphPrimitive], clips: dict[str, KeyFrames], extras: dict
) -> None:
    """Writes one mesh of `primitives`, all morphed by the same `clips`, as `path`. `extras` go into the file's asset."""
    poses = [np.concatenate([primitive.positions[clip] for clip in clips]) for primitive in primitives]
    low, high = (reduce([reduce(pose, (0, 1)) for pose in poses], 0) for reduce in (np.min, np.max))
    offset, scale = (low + high) / 2, float(np.max(high - low) / 2)
    bases = [np.rint(((pose.min(0) + pose.max(0)) / 2 - offset) / scale * 32767).astype(np.int16) for pose in poses]
    deltas = [(pose - offset) / scale - base / 32767 for pose, base in zip(poses, bases, strict=True)]
    weights = np.maximum(np.max([np.abs(delta).max((1, 2)) for delta in deltas], 0), 1e-6)

    buffer = _Buffer()
    meshes, images = [], []
    for primitive, base, delta in zip(primitives, bases, deltas, strict=True):
        if primitive.texture not in images:
            images.append(primitive.texture)
        quantised = np.rint(delta / weights[:, None, None] * 127).astype(np.int8)
        meshes.append(
            {
                "attributes": {
                    "POSITION": buffer.vertices(base, normalized=True, bounds=True),
                    "NORMAL": buffer.vertices(np.rint(primitive.normals * 127).astype(np.int8), normalized=True),
                    "TEXCOORD_0": _texture_coordinates(buffer, primitive.uv),
                },
                "indices": buffer.scalars(primitive.triangles.astype(np.uint16).ravel(), target=ELEMENT_ARRAY_BUFFER),
                "material": images.index(primitive.texture),
                "targets": [{"POSITION": buffer.vertices(q, normalized=True, bounds=True)} for q in quantised],
            }
        )
    document = {
        "asset": {"version": "2.0", "generator": "fourreal data build", "extras": extras},
        "extensionsUsed": ["KHR_mesh_quantization"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0, "translation": offset.tolist(), "scale": [scale] * 3}],
        # a viewer that plays nothing shows the first key frame of the first clip
        "meshes": [{"name": name, "primitives": meshes, "weights": [float(weights[0])] + [0.0] * (len(weights) - 1)}],
        "animations": _animations(buffer, clips, weights),
        "materials": [
            {"pbrMetallicRoughness": {"baseColorTexture": {"index": i}, "metallicFactor": 0.0}, "doubleSided": True}
            for i in range(len(images))
        ],
        "textures": [{"source": i, "sampler": 0} for i in range(len(images))],
        "samplers": [{"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": REPEAT, "wrapT": REPEAT}],
        "images": [
            {"bufferView": buffer.view(image), "mimeType": "image/png" if image[:4] == b"\x89PNG" else "image/jpeg"}
            for image in images
        ],
    }
    document |= {"accessors": buffer.accessors, "bufferViews": buffer.views}
    document["buffers"] = [{"byteLength": len(buffer.data)}]
    path.write_bytes(_container(document, bytes(buffer.data)))


def _texture_coordinates(buffer: _Buffer, uv: np.ndarray) -> int:
    if uv.min() >= 0 and uv.max() <= 1:
        return buffer.vertices(np.rint(uv * 65535).astype(np.uint16), normalized=True)
    return buffer.vertices(uv.astype(np.float32))  # a repeated texture does not fit normalised integers


def _animations(buffer: _Buffer, clips: dict[str, KeyFrames], weights: np.ndarray) -> list[dict]:
    animations, first = [], 0
    for clip, keys in clips.items():
        on = np.zeros((len(keys.times), len(weights)), np.float32)
        here = np.arange(first, first + len(keys.times))
        on[np.arange(len(keys.times)), here] = weights[here]
        times = keys.times
        if keys.loop:
            on, times = np.concatenate([on, on[:1]]), np.append(times, keys.seconds)
        sampler = {"input": buffer.scalars(times.astype(np.float32), bounds=True), "output": buffer.scalars(on.ravel())}
        channel = {"sampler": 0, "target": {"node": 0, "path": "weights"}}
        animations.append({"name": clip, "samplers": [sampler], "channels": [channel], "extras": {"loop": keys.loop}})
        first += len(keys.times)
    return animations


def _container(document: dict, binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
