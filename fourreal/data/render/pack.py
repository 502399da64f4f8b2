"""Builds the pack of animated assets (`fourreal data build`) from an unpacked Debian package `megaglest-data`.

    apt-get download megaglest-data && dpkg -x megaglest-data_*.deb SOURCE && fourreal data build --source SOURCE

From the units of five factions it takes up to two clips each, at most nine key frames a clip, and writes one `.glb` a unit
(see glb.py), with 128-pixel JPEG textures inside, and beside them ground textures, the licence, the credits, the list of
changes and `manifest.json`. Every unit and every ground belongs to one split: units that share a texture, a near copy of
one or the same body go together, so nothing seen in training is seen again in a test.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourreal.data.render.glb import KeyFrames, MorphPrimitive, write_glb
from fourreal.data.render.pack_selection import (
    SPLIT_SHARES,
    SourceClip,
    SourceModel,
    SourceUnit,
    choose_grounds,
    content_hash,
    select_units,
    split_units,
    stable_number,
)
from fourreal.data.render.pack_texts import CHANGES, credits_text, licence_text
from fourreal.errors import MissingFile, UserError
from fourreal.host.folders import check_creatable, whole_folder

TEAM_COLOURS = (
    (190, 30, 30),
    (35, 60, 190),
    (30, 140, 50),
    (205, 180, 40),
    (120, 40, 150),
    (40, 150, 160),
    (210, 110, 30),
)


@dataclass(frozen=True)
class BuildPack:
    """Build the pack of animated assets from an unpacked Debian package `megaglest-data`."""

    source: Path
    """folder into which the package was unpacked (dpkg -x megaglest-data_*.deb FOLDER)"""
    out: Path = Path("fourreal/assets/units")
    """folder to write"""
    overwrite: bool = False
    """replace an existing folder"""
    key_frames: int = 9
    """most key frames of a clip"""
    texture_size: int = 128
    """longest side of a unit's texture, a power of two"""
    grounds: int = 40
    """number of ground textures"""

    def run(self) -> None:
        """Writes the pack. Raises FileNotFoundError without the game's data, ValueError where `out` exists."""
        data = self.source / "usr/share/games/megaglest"
        if not (data / "techs/megapack/factions").is_dir():
            raise MissingFile(f"no game data under {data}: unpack megaglest-data there with dpkg -x")
        check_creatable(self.out)
        if self.out.exists() and not self.overwrite:
            raise UserError(f"{self.out} exists already: name another --out or pass --overwrite")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file: name a folder with --out")
        if self.out.exists() and any(self.out.iterdir()) and not (self.out / "manifest.json").is_file():
            raise UserError(f"{self.out} is no pack, so --overwrite leaves it: name another --out")
        with whole_folder(self.out) as building:
            (building / "grounds").mkdir(parents=True)
            units = select_units(data / "techs/megapack/factions")
            if not units:
                raise UserError(f"no unit under {data} has clips that move: unpack the whole package there")
            splits = split_units(units)
            entries = [self._write_unit(building, unit, splits[unit.name]) for unit in units]
            manifest = {
                "format": 1,
                "source": "megaglest-data (Debian package)",
                "licence": "CC-BY-SA-3.0",
                "units": entries,
                "grounds": self._write_grounds(building, data / "tilesets"),
            }
            (building / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            copyright_file = self.source / "usr/share/doc/megaglest-data/copyright"
            (building / "LICENSE").write_text(licence_text(copyright_file))
            (building / "CREDITS").write_text(credits_text(copyright_file))
            (building / "CHANGES").write_text(CHANGES)
        self._report(manifest)

    def _report(self, manifest: dict) -> None:
        size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        for kind in ("units", "grounds"):
            counts = [sum(e["split"] == s for e in manifest[kind]) for s in ("train", "validation", "test")]
            print(f"{kind}: {sum(counts)} (train {counts[0]}, validation {counts[1]}, test {counts[2]})")
        print(f"clips: {sum(len(unit['clips']) for unit in manifest['units'])}")
        print(f"{self.out}: {size / 1e6:.2f} MB")

    def _write_unit(self, folder: Path, unit: SourceUnit, split: str) -> dict:
        clips = []
        for model in unit.models:
            names = [clip.kind for clip in model.clips]
            file = f"{unit.name}.glb" if len(unit.models) == 1 else f"{unit.name}_{'_'.join(names)}.glb"
            self._write_model(folder / file, unit.name, model)
            for name, clip in zip(names, model.clips, strict=True):
                source = str(clip.path.relative_to(clip.path.parents[4]))
                clips.append({"name": name, "file": file, "motion": round(clip.motion, 3), "source": source})
        textures = sorted({content_hash(path)[:16] for path in unit.textures})
        return {"name": unit.name, "split": split, "clips": clips, "textures": textures}

    def _write_model(self, file: Path, name: str, model: SourceModel) -> None:
        team = TEAM_COLOURS[stable_number(name) % len(TEAM_COLOURS)]
        flags = {}  # a texture file is baked with the team's colour if any of its meshes wants that
        for mesh, path in zip(model.clips[0].meshes, model.textures, strict=True):
            flags[path] = flags.get(path, False) or mesh.team_colour
        baked = {path: bake_texture(path, team if flag else None, self.texture_size) for path, flag in flags.items()}
        positions, keys = {}, {}
        for clip in model.clips:
            count = len(clip.meshes[0].positions)
            at = np.unique(np.rint(np.linspace(0, count - 1, min(count, self.key_frames))).astype(int))
            loop, closed = clip.kind != "die", _returns(clip)
            at = at[:-1] if loop and closed else at  # the closing key is the first one again
            positions[clip.kind] = [mesh.positions[at] for mesh in clip.meshes]
            keys[clip.kind] = KeyFrames(at / (count - 1 if closed or not loop else count), 1.0, loop)
        primitives = [
            MorphPrimitive(
                {kind: meshes[i] for kind, meshes in positions.items()},
                _unit_length(mesh.normals),
                mesh.uv * (1, -1) + (0, 1),
                mesh.triangles,
                baked[path],
            )
            for i, (mesh, path) in enumerate(zip(model.clips[0].meshes, model.textures, strict=True))
        ]
        write_glb(file, name, primitives, keys, {"copyright": "MegaGlest, CC-BY-SA-3.0; see CREDITS"})

    def _write_grounds(self, folder: Path, tilesets: Path) -> list[dict]:
        entries = []
        chosen = choose_grounds(tilesets, self.grounds)
        order = sorted(chosen, key=lambda item: stable_number(item[0]))
        held_out = {split: max(2, round(len(chosen) * share)) for split, share in SPLIT_SHARES.items()}
        splits = [split for split, count in held_out.items() for _ in range(count)]
        splits += ["train"] * (len(chosen) - len(splits))
        for (name, path), split in zip(order, splits, strict=True):
            (folder / "grounds" / f"{name}.jpg").write_bytes(bake_texture(path, None, 128, quality=75))
            entries.append({"name": name, "file": f"grounds/{name}.jpg", "split": split})
        return sorted(entries, key=lambda entry: entry["name"])


def bake_texture(path: Path, team: tuple[int, int, int] | None, size: int, quality: int = 80) -> bytes:
    """A texture as JPEG, sides powers of two up to `size`; with a team colour, that shows where alpha is low."""
    from PIL import Image

    image = Image.open(path).convert("RGBA")
    pixels = np.asarray(image, np.float32)
    if team is not None:
        alpha = pixels[..., 3:] / 255
        pixels = pixels[..., :3] * alpha + np.array(team, np.float32) * (1 - alpha)
    picture = Image.fromarray(np.rint(pixels[..., :3]).astype(np.uint8))
    width, height = (min(size, 1 << (side.bit_length() - 1)) for side in picture.size)
    data = io.BytesIO()
    picture.resize((width, height), Image.Resampling.BOX).save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()


def _returns(clip: SourceClip) -> bool:
    """Whether the last frame is the first one again: nearer to it than half a usual step."""
    positions = np.concatenate([mesh.positions for mesh in clip.meshes], 1)
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=-1).mean(1)
    return bool(np.linalg.norm(positions[-1] - positions[0], axis=-1).mean() < 0.5 * np.median(steps))


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    """Normals [n, 3] of length 1; a few vertices of the game have none (zero or NaN) and get (0, 1, 0)."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    known = length > 1e-6  # False for NaN, too
    return np.where(known, vectors / np.where(known, length, 1), (0, 1, 0))
