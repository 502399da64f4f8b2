"""The reader of game meshes, against files written byte by byte here."""

import struct

import numpy as np
import pytest

from fourreal.data.render.g3d import read_g3d

POSITIONS = np.arange(18, dtype="<f4").reshape(2, 3, 3)  # two frames of one triangle
UV = np.array([[0, 0], [1, 0], [0, 1]], "<f4")
INDICES = np.array([0, 1, 2], "<u4")


def version_4(texture: str = "skin.png", properties: int = 1) -> bytes:
    mask = 1 if texture else 0
    head = (
        b"G3D\x04"
        + struct.pack("<HB", 1, 0)
        + struct.pack("<64s3I8f2I", b"body", 2, 3, 3, *[0.5] * 8, properties, mask)
    )
    name = struct.pack("<64s", texture.encode()) if texture else b""
    uv = UV.tobytes() if texture else b""
    return head + name + POSITIONS.tobytes() + POSITIONS.tobytes() + uv + INDICES.tobytes()


def version_3() -> bytes:
    head = b"G3D\x03" + struct.pack("<I", 1) + struct.pack("<7I64s", 2, 2, 1, 1, 3, 3, 4, b"skin.bmp")
    colour = np.array([0.1, 0.2, 0.3, 1.0], "<f4")
    return head + POSITIONS.tobytes() * 2 + UV.tobytes() + colour.tobytes() + INDICES.tobytes()


@pytest.mark.parametrize("data, texture", [(version_4(), "skin.png"), (version_3(), "skin.bmp")])
def test_both_versions_give_every_frame_the_texture_and_the_team_colour(tmp_path, data, texture):
    (tmp_path / "unit.g3d").write_bytes(data)
    (mesh,) = read_g3d(tmp_path / "unit.g3d")
    assert np.array_equal(mesh.positions, POSITIONS) and np.array_equal(mesh.normals, POSITIONS[0])
    assert np.array_equal(mesh.uv, UV) and mesh.triangles.tolist() == [[0, 1, 2]]
    assert mesh.texture == texture and mesh.team_colour


def test_a_mesh_without_a_texture_has_no_texture_coordinates(tmp_path):
    (tmp_path / "unit.g3d").write_bytes(version_4(texture="", properties=0))
    (mesh,) = read_g3d(tmp_path / "unit.g3d")
    assert mesh.uv is None and mesh.texture == "" and not mesh.team_colour


@pytest.mark.parametrize("data, said", [(version_4()[:-6], "ends early"), (b"PNG" + b"\0" * 40, "not a G3D file")])
def test_what_is_no_whole_file_is_refused(tmp_path, data, said):
    (tmp_path / "unit.g3d").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_g3d(tmp_path / "unit.g3d")
