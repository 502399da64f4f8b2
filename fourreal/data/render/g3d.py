"""Reads `.g3d`, the vertex-animated mesh format of the games Glest and MegaGlest (versions 3 and 4, little endian).

Version 4: `"G3D" 4`, u16 mesh count, u8 type, then for each mesh
    char[64] name; u32 frames, vertices, indices; 8 f32 (diffuse rgb, specular rgb, specular power, opacity);
    u32 properties (bit 0: team colour), u32 texture mask; char[64] texture name for each set bit of the mask;
    f32 positions [frames, vertices, 3]; f32 normals, same shape; f32 uv [vertices, 2] if the mask is not 0; u32 indices.
Version 3: `"G3D" 3`, u32 mesh count, then for each mesh
    u32 position, normal, uv and colour frames, vertices, indices, properties (bit 0: no texture, bit 2: team colour);
    char[64] texture; f32 positions, normals, uv [uv frames, vertices, 2] if textured; f32 colours [colour frames, 4];
    u32 indices.
Y is up and a texture's v runs upward.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourreal.errors import UserError


@dataclass(frozen=True)
class G3DMesh:
    """One mesh of a file: positions float32 [k, n, 3] at k key frames, normals of the first [n, 3],
    triangles int64 [m, 3], uv float32 [n, 2] or None."""

    name: str
    texture: str
    positions: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray | None
    colour: tuple[float, float, float]
    opacity: float
    team_colour: bool


class _Reader:
    def __init__(self, data: bytes, path: Path):
        self.data, self.path, self.at = data, path, 0

    def unpack(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        return self.unpack("64s")[0].split(b"\0")[0].decode("latin-1")

    def array(self, dtype: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values.reshape(shape)


def read_g3d(path: Path | str) -> list[G3DMesh]:
    """Reads every mesh of a file. Raises ValueError for anything that is not a whole `.g3d` of version 3 or 4."""
    path = Path(path)
    reader = _Reader(path.read_bytes(), path)
    if reader.data[:3] != b"G3D" or reader.data[3:4] not in (b"\x03", b"\x04"):
        raise UserError(f"{path} is not a G3D file of version 3 or 4: unpack the package again")
    reader.at = 4
    try:
        if reader.data[3] == 4:
            count, _ = reader.unpack("HB")
            return [_mesh_v4(reader) for _ in range(count)]
        (count,) = reader.unpack("I")
        return [_mesh_v3(reader) for _ in range(count)]
    except (struct.error, ValueError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{path} ends early or is damaged at byte {reader.at} ({error}): unpack the package again"
        ) from error


def _mesh_v4(reader: _Reader) -> G3DMesh:
    name = reader.text()
    frames, vertices, indices = reader.unpack("3I")
    *surface, opacity = reader.unpack("8f")
    properties, mask = reader.unpack("2I")
    textures = [reader.text() for bit in range(32) if mask >> bit & 1]
    positions = reader.array("<f4", frames, vertices, 3)
    normals = reader.array("<f4", frames, vertices, 3)[0]
    uv = reader.array("<f4", vertices, 2) if mask else None
    triangles = reader.array("<u4", indices // 3, 3).astype(np.int64)
    diffuse = textures[0] if mask & 1 else ""
    return G3DMesh(name, diffuse, positions, normals, triangles, uv, tuple(surface[:3]), opacity, bool(properties & 1))


def _mesh_v3(reader: _Reader) -> G3DMesh:
    frames, normal_frames, uv_frames, colour_frames, vertices, indices, properties = reader.unpack("7I")
    texture = reader.text()
    textured = not properties & 1
    positions = reader.array("<f4", frames, vertices, 3)
    normals = reader.array("<f4", normal_frames, vertices, 3)[0]
    uv = reader.array("<f4", uv_frames, vertices, 2)[0] if textured else None
    colour = reader.array("<f4", colour_frames, 4)[0]
    triangles = reader.array("<u4", indices // 3, 3).astype(np.int64)
    name = texture if textured else ""
    red, green, blue, opacity = colour.tolist()
    return G3DMesh("", name, positions, normals, triangles, uv, (red, green, blue), opacity, bool(properties & 4))
