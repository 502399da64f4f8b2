"""Reading `.glb` files, against files whose right answer is worked out by hand, and writing them."""

import io

import numpy as np
import pytest
from PIL import Image

from fourreal.data.render.glb import KeyFrames, MorphPrimitive, _Buffer, _container, write_glb
from fourreal.data.render.gltf import AnimatedModel

TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
Z_UP = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1]])  # the same triangle with z up


def png(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(data, "PNG")
    return data.getvalue()


def write_document(path, buffer: _Buffer, document: dict) -> AnimatedModel:
    document = {"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], **document}
    document |= {"accessors": buffer.accessors, "bufferViews": buffer.views}
    document["buffers"] = [{"byteLength": len(buffer.data)}]
    path.write_bytes(_container(document, bytes(buffer.data)))
    return AnimatedModel(path)


def track(buffer: _Buffer, times: list, values: np.ndarray, path: str, node: int, **sampler) -> dict:
    values = np.asarray(values, np.float32)
    output = buffer.scalars(values) if values.ndim == 1 else buffer.vertices(values)
    samplers = [{"input": buffer.scalars(np.array(times, np.float32), bounds=True), "output": output, **sampler}]
    return {"name": path, "samplers": samplers, "channels": [{"sampler": 0, "target": {"node": node, "path": path}}]}


def triangle(buffer: _Buffer, **fields) -> dict:
    indices = buffer.scalars(np.array([0, 1, 2], np.uint16))
    return {"primitives": [{"attributes": {"POSITION": buffer.vertices(TRIANGLE)}, "indices": indices, **fields}]}


def test_morph_targets_are_blended_by_the_animated_weights(tmp_path):
    buffer = _Buffer()
    targets = [{"POSITION": buffer.vertices(np.full((3, 3), value, np.float32))} for value in (1.0, 10.0)]
    animation = track(buffer, [0, 1], np.array([1, 0, 0, 1.0]), "weights", 0)
    document = {"meshes": [triangle(buffer, targets=targets)], "nodes": [{"mesh": 0}], "animations": [animation]}
    model = write_document(tmp_path / "m.glb", buffer, document)
    (positions,) = model.pose("weights", np.array([0, 0.25, 1.0, 9.0]))
    for got, added in zip(positions, [1, 0.75 * 1 + 0.25 * 10, 10, 10], strict=True):
        assert np.allclose(got, Z_UP + np.array([added, -added, added]), atol=1e-5)


def test_step_animation_holds_the_earlier_key(tmp_path):
    buffer = _Buffer()
    moved = track(buffer, [0, 1], np.array([[0, 0, 0], [4, 0, 0]]), "translation", 0, interpolation="STEP")
    document = {"meshes": [triangle(buffer)], "nodes": [{"mesh": 0}], "animations": [moved]}
    model = write_document(tmp_path / "m.glb", buffer, document)
    (positions,) = model.pose("translation", np.array([0.9, 1.0]))
    assert np.allclose(positions[:, 0, 0], [0, 4])


def test_nodes_pass_their_transforms_to_their_children(tmp_path):
    buffer = _Buffer()
    half = np.sqrt(0.5)
    turned = track(buffer, [0, 1], np.array([[0, 0, 0, 1], [0, 0, half, half]]), "rotation", 0)
    nodes = [{"children": [1], "scale": [2, 2, 2]}, {"mesh": 0, "translation": [1, 0, 0]}]
    document = {"meshes": [triangle(buffer)], "nodes": nodes, "animations": [turned]}
    model = write_document(tmp_path / "m.glb", buffer, document)
    (positions,) = model.pose("rotation", np.array([0.0, 1.0]))
    # the first vertex is at (1, 0, 0) in the parent, doubled, then turned by 90 degrees about z: (0, 2, 0), z up (0, 0, 2)
    assert np.allclose(positions[0, 0], [2, 0, 0], atol=1e-5) and np.allclose(positions[1, 0], [0, 0, 2], atol=1e-5)


def test_a_skin_follows_its_joints_and_not_its_node(tmp_path):
    buffer = _Buffer()
    bind = np.eye(4, dtype=np.float32)
    bind[3, 0] = -1  # column-major: the joint rests at x = 1
    binds = buffer.view(np.stack([bind, bind]).tobytes())
    buffer.accessors.append({"bufferView": binds, "componentType": 5126, "count": 2, "type": "MAT4"})
    skin = {"joints": [1, 2], "inverseBindMatrices": len(buffer.accessors) - 1}
    joints = buffer.view(np.array([[0, 1, 0, 0]] * 3, np.uint8).tobytes())
    buffer.accessors.append({"bufferView": joints, "componentType": 5121, "count": 3, "type": "VEC4"})
    weights = buffer.view(np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0]], np.float32).tobytes())
    buffer.accessors.append({"bufferView": weights, "componentType": 5126, "count": 3, "type": "VEC4"})
    mesh = triangle(buffer)
    mesh["primitives"][0]["attributes"] |= {
        "JOINTS_0": next(i for i, a in enumerate(buffer.accessors) if a["type"] == "VEC4"),
        "WEIGHTS_0": next(
            i for i, a in enumerate(buffer.accessors) if a["type"] == "VEC4" and a["componentType"] == 5126
        ),
    }
    moved = track(buffer, [0, 1], np.array([[1, 0, 0], [1, 0, 6]]), "translation", 2)
    nodes = [{"mesh": 0, "skin": 0, "translation": [99, 0, 0]}, {"translation": [1, 0, 0]}, {"translation": [1, 0, 0]}]
    document = {"meshes": [mesh], "nodes": nodes, "skins": [skin], "animations": [moved]}
    model = write_document(tmp_path / "m.glb", buffer, document)
    (positions,) = model.pose("translation", np.array([0.0, 1.0]))
    assert np.allclose(positions[0], Z_UP, atol=1e-5)
    # at the end the second joint has moved by 6 along glTF's z, which is -y here: none, half and all of it
    assert np.allclose(positions[1], Z_UP + np.array([[0, 0, 0], [0, -3, 0], [0, -6, 0]]), atol=1e-5)


def test_a_written_model_reads_back_at_every_key_frame(tmp_path):
    rng = np.random.default_rng(0)
    poses = {"walk": rng.normal(size=(4, 5, 3)), "die": rng.normal(size=(3, 5, 3))}
    triangles = np.array([[0, 1, 2], [2, 3, 4]])
    uv, normals = rng.uniform(size=(5, 2)), np.tile([0.0, 1, 0], (5, 1))
    keys = {"walk": KeyFrames(np.arange(4) / 4, 1.0, True), "die": KeyFrames(np.arange(3) / 2, 1.0, False)}
    write_glb(tmp_path / "u.glb", "u", [MorphPrimitive(poses, normals, uv, triangles, png((255, 0, 0)))], keys, {})
    model = AnimatedModel(tmp_path / "u.glb")
    assert model.clips["walk"].loop and not model.clips["die"].loop and model.clips["walk"].seconds == 1
    everything = np.concatenate([poses["walk"], poses["die"]])
    # positions: half a step of the base and of the target, whose step is at most scale / 127
    bound = np.ptp(everything, (0, 1)).max() / 2 * (0.5 / 127 + 0.5 / 32767) * 1.01
    for clip, times in (("walk", [0, 0.25, 0.5, 0.75, 1.0]), ("die", [0, 0.5, 1.0])):
        (got,) = model.pose(clip, np.array(times))
        wanted = np.concatenate([poses[clip], poses[clip][:1]])[: len(times)]  # a loop ends where it began
        assert np.abs(got - np.stack([wanted[..., 0], -wanted[..., 2], wanted[..., 1]], -1)).max() <= bound
    (primitive,) = model.primitives
    assert np.allclose(primitive.uv, uv, atol=1e-5) and np.array_equal(primitive.triangles, triangles)
    assert np.allclose(primitive.normals, [[0, 0, 1]] * 5, atol=0.01)
    assert (primitive.texture == (255, 0, 0)).all()


def test_base_colour_factor_and_no_texture_give_a_flat_colour(tmp_path):
    buffer = _Buffer()
    material = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0.5, 0, 1]}}
    document = {"meshes": [triangle(buffer, material=0)], "nodes": [{"mesh": 0}], "materials": [material]}
    model = write_document(tmp_path / "m.glb", buffer, document)
    assert model.primitives[0].texture.tolist() == [[[255, 128, 0]]]


def test_unusable_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        AnimatedModel(tmp_path / "none.glb")
    (tmp_path / "bad.glb").write_bytes(b"not a model, but long enough to look at")
    with pytest.raises(ValueError, match="not a binary glTF file"):
        AnimatedModel(tmp_path / "bad.glb")
    (tmp_path / "packed.glb").write_bytes(_container({"extensionsRequired": ["KHR_draco_mesh_compression"]}, b""))
    with pytest.raises(ValueError, match="without compression"):
        AnimatedModel(tmp_path / "packed.glb")
    (tmp_path / "empty.glb").write_bytes(_container({"asset": {"version": "2.0"}}, b""))
    with pytest.raises(ValueError, match="no triangle mesh"):
        AnimatedModel(tmp_path / "empty.glb")
