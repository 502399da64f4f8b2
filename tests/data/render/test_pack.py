"""The bundled pack of units, and how one is built."""

import hashlib
import json
import struct

import numpy as np
import pytest
from PIL import Image

from fourreal.data.render import pack
from fourreal.data.render.assets import BUNDLED, Assets
from fourreal.data.render.g3d import G3DMesh, read_g3d
from fourreal.data.render.gltf import AnimatedModel
from fourreal.data.render.pack_selection import FACTIONS, SourceClip, SourceModel, SourceUnit, split_units

MANIFEST = json.loads((BUNDLED / "manifest.json").read_text())


def images_of(model: AnimatedModel) -> set[str]:
    views = [image["bufferView"] for image in model._document["images"]]
    return {hashlib.sha256(model._bytes(view)[0]).hexdigest() for view in views}


def test_the_pack_is_complete_licensed_and_at_most_six_megabytes():
    files = {str(path.relative_to(BUNDLED)) for path in BUNDLED.rglob("*") if path.is_file()}
    named = {clip["file"] for unit in MANIFEST["units"] for clip in unit["clips"]}
    named |= {ground["file"] for ground in MANIFEST["grounds"]}
    assert files == named | {"manifest.json", "LICENSE", "CREDITS", "CHANGES"}
    assert sum((BUNDLED / file).stat().st_size for file in files) <= 6e6
    assert "Attribution-ShareAlike 3.0" in (BUNDLED / "LICENSE").read_text()
    assert "Tscharntke" in (BUNDLED / "CREDITS").read_text()


def test_no_unit_and_no_texture_is_in_two_splits():
    split_of_texture, split_of_image = {}, {}
    for unit in MANIFEST["units"]:
        for texture in unit["textures"]:
            assert split_of_texture.setdefault(texture, unit["split"]) == unit["split"]
        for clip in unit["clips"]:
            for image in images_of(AnimatedModel(BUNDLED / clip["file"])):
                assert split_of_image.setdefault(image, unit["split"]) == unit["split"]
    names = [unit["name"] for unit in MANIFEST["units"]]
    assert len(set(names)) == len(names)
    pictures = {}
    for ground in MANIFEST["grounds"]:
        content = hashlib.sha256((BUNDLED / ground["file"]).read_bytes()).hexdigest()
        assert pictures.setdefault(content, ground["split"]) == ground["split"]


def test_the_splits_have_their_shares():
    for kind, least in (("units", 60), ("grounds", 30)):
        splits = [entry["split"] for entry in MANIFEST[kind]]
        assert len(splits) >= least
        shares = {split: splits.count(split) / len(splits) for split in ("train", "validation", "test")}
        # groups of units cannot be cut, so a share may be a few hundredths off
        assert abs(shares["train"] - 0.8) < 0.05 and abs(shares["test"] - 0.12) < 0.04 and shares["validation"] > 0.05


def test_every_clip_plays_moves_and_is_small():
    for unit in MANIFEST["units"]:
        assert 1 <= len(unit["clips"]) <= 2
        for clip in unit["clips"]:
            model = AnimatedModel(BUNDLED / clip["file"])
            poses = np.concatenate(model.pose(clip["name"], np.linspace(0, model.clips[clip["name"]].seconds, 20)), 1)
            travel = np.percentile(np.linalg.norm(np.ptp(poses, 0), axis=-1), 90)
            # key frames are fewer than the game's frames, so a little of the motion measured there may be gone
            assert travel > 0.1 * np.median(np.ptp(poses[..., 2], 1)), clip
            assert sum(len(primitive.triangles) for primitive in model.primitives) < 1500
            sampler = model._animations[clip["name"]]["samplers"][0]
            assert model._document["accessors"][sampler["input"]]["count"] <= 11
            for primitive in model.primitives:
                assert all(side <= 128 and side & (side - 1) == 0 for side in primitive.texture.shape[:2])


# --- building from a tiny game tree


def g3d(frames: np.ndarray, triangles: np.ndarray, texture: str) -> bytes:
    count, vertices = frames.shape[:2]
    head = b"G3D\x04" + struct.pack("<HB", 1, 0)
    head += struct.pack("<64s3I8f2I", b"m", count, vertices, triangles.size, *[1.0] * 8, 1, 1)
    uv = np.random.default_rng(0).uniform(size=(vertices, 2)).astype("<f4")
    body = frames.astype("<f4").tobytes() + np.ones_like(frames, "<f4").tobytes() + uv.tobytes()
    return head + struct.pack("<64s", texture.encode()) + body + triangles.astype("<u4").tobytes()


@pytest.fixture()
def game(tmp_path):
    rng = np.random.default_rng(1)
    data = tmp_path / "deb/usr/share/games/megaglest"
    for i in range(12):
        models = data / f"techs/megapack/factions/{FACTIONS[i % 5]}/units/unit{i}/models"
        models.mkdir(parents=True)
        body, triangles = rng.normal(size=(30, 3)), rng.integers(0, 30, (40, 3))
        wave = np.sin(np.arange(16) / 15 * 2 * np.pi)[:, None, None]
        walk = body + wave * rng.normal(size=(30, 3)) * 0.5
        (models / "unit_walking.g3d").write_bytes(g3d(walk, triangles, "skin.png"))
        (models / "unit_dying.g3d").write_bytes(
            g3d(body * np.linspace(1, 0.3, 16)[:, None, None], triangles, "skin.png")
        )
        (models / "unit_standing.g3d").write_bytes(g3d(np.repeat(body[None], 16, 0), triangles, "skin.png"))
        (models / "unit_destroyed.g3d").write_bytes(g3d(walk, triangles, "skin.png"))
        same = 0 if i in (0, 1) else i  # units 0 and 1 wear the same texture
        colours = np.random.default_rng(100 + same).integers(0, 255, (64, 64, 4)).astype(np.uint8)
        Image.fromarray(np.kron(colours[::16, ::16], np.ones((16, 16, 1), np.uint8))).save(models / "skin.png")
    tileset = data / "tilesets/meadow"
    (tileset / "textures").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(tileset / f"textures/s{i}.png")
    textures = "".join(f'<texture path="textures/s{i}.png"/>' for i in range(8))
    (tileset / "meadow.xml").write_text(f"<tileset><surfaces><surface>{textures}</surface></surfaces></tileset>")
    copyright_file = tmp_path / "deb/usr/share/doc/megaglest-data/copyright"
    copyright_file.parent.mkdir(parents=True)
    licence = "License: CC-BY-SA-3.0\n"
    credits = "Comment:\n Made by A. Smith\n .\n\nFiles: *\n"
    copyright_file.write_text(f"{credits}{licence}\n{licence} THE WORK\n .\n IS FREE\n")
    return tmp_path


def test_a_pack_is_built_from_an_unpacked_package(game, capsys):
    out = game / "pack"
    pack.BuildPack(source=game / "deb", out=out, grounds=6).run()
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["units"]) == 12 and len(manifest["grounds"]) == 6
    for unit in manifest["units"]:
        # the static and the destroyed clip are left out; both others share one file
        assert [clip["name"] for clip in unit["clips"]] == ["walk", "die"]
        model = AnimatedModel(out / unit["clips"][0]["file"])
        assert model.clips["walk"].loop and not model.clips["die"].loop
    splits = {unit["name"].split("_")[1]: unit["split"] for unit in manifest["units"]}
    assert splits["unit0"] == splits["unit1"]
    assert set(splits.values()) == {"train", "validation", "test"}
    assert (out / "LICENSE").read_text().endswith("THE WORK\n\nIS FREE\n")
    assert "Made by A. Smith" in (out / "CREDITS").read_text()
    assert Assets(out).clips("test")
    assert "units: 12" in capsys.readouterr().out


def test_building_twice_gives_the_same_bytes(game):
    for name in ("a", "b"):
        pack.BuildPack(source=game / "deb", out=game / name, grounds=6).run()
    first, second = ({p.name: p.read_bytes() for p in (game / n).rglob("*") if p.is_file()} for n in ("a", "b"))
    assert first == second


def test_key_frames_of_a_loop_keep_their_times(game):
    pack.BuildPack(source=game / "deb", out=game / "pack", grounds=6, key_frames=6).run()
    source = game / "deb/usr/share/games/megaglest/techs/megapack/factions/egypt/units/unit0/models/unit_walking.g3d"
    frames = read_g3d(source)[0].positions
    (got,) = AnimatedModel(game / "pack/egypt_unit0.glb").pose("walk", np.array([0.0, 3 / 15, 6 / 15, 1.0]))
    wanted = frames[[0, 3, 6, 15]]  # six of sixteen frames: 0, 3, 6, 9, 12, and 15, which is 0 again
    assert np.allclose(got, np.stack([wanted[..., 0], -wanted[..., 2], wanted[..., 1]], -1), atol=0.03)


def test_a_wrong_source_and_an_existing_folder_are_refused(game):
    with pytest.raises(FileNotFoundError, match="unpack megaglest-data"):
        pack.BuildPack(source=game / "nowhere", out=game / "pack").run()
    (game / "pack").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        pack.BuildPack(source=game / "deb", out=game / "pack").run()


@pytest.mark.parametrize("shared", ["texture", "near copy of a texture", "body"])
def test_units_that_share_something_stay_in_one_split(tmp_path, shared):
    rng = np.random.default_rng(0)

    def unit(name: str, pixels: np.ndarray, body: np.ndarray) -> SourceUnit:
        texture = tmp_path / f"{name}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(texture)
        triangles = np.array([[0, 1, 2]])
        mesh = G3DMesh("m", texture.name, body[None], body, triangles, body[:, :2], (1, 1, 1), 1.0, False)
        return SourceUnit(name, (SourceModel((SourceClip("walk", (mesh,), 1.0, texture),), (texture,)),))

    units = []
    for i in range(20):
        pixels, body = rng.integers(0, 250, (24, 24, 3)), rng.normal(size=(20, 3))
        other_pixels, other_body = rng.integers(0, 250, (24, 24, 3)), rng.normal(size=(20, 3))
        if shared == "body":
            other_body[:10] = body[:10]  # half of the vertices
        else:
            other_pixels = pixels + (2 if shared.startswith("near") else 0)
        units += [unit(f"one{i}", pixels, body), unit(f"other{i}", other_pixels, other_body)]
    splits = split_units(units)
    assert all(splits[f"one{i}"] == splits[f"other{i}"] for i in range(20))
    counts = [list(splits.values()).count(split) for split in ("train", "validation", "test")]
    assert counts == [33, 3, 4] or counts == [32, 4, 4] or counts == [34, 2, 4]  # pairs fill 12 % and 8 % of 40
