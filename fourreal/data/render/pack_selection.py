"""Chooses what goes into the pack of assets: units and clips that move enough, unlike grounds, and who is in which split."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from fourreal.data.render.g3d import G3DMesh, read_g3d
from fourreal.errors import UserError

FACTIONS = ("egypt", "indian", "magic", "norsemen", "tech")
KINDS = ("walk", "attack", "work", "die", "stand")  # what a clip shows, in the order of preference
WORDS = {  # the words of a clip's file name that say so; the first that fits counts
    "die": ("dying", "die", "death", "dead"),
    "stand": ("stand", "stop", "idle", "morph"),
    "attack": ("attack", "fight", "throw", "shoot", "cast", "spell"),
    "walk": ("walk", "mov", "fly", "run", "charg", "gallop"),
    "work": ("produc", "min", "harv", "wood", "gold", "repair", "build", "heal"),
}
UNUSED = ("destroy", "construct", "arrow", "projectile", "stone_model")
SPLIT_SHARES = {"test": 0.12, "validation": 0.08}  # of the units, the rest is train


@dataclass(frozen=True)
class SourceClip:
    """A `.g3d` that qualifies: what it shows, its meshes, and how far it moves as a share of its height."""

    kind: str
    meshes: tuple[G3DMesh, ...]
    motion: float
    path: Path


@dataclass(frozen=True)
class SourceModel:
    """Clips over the same triangles, which become one `.glb`, and the files of their textures, one a mesh."""

    clips: tuple[SourceClip, ...]
    textures: tuple[Path, ...]


@dataclass(frozen=True)
class SourceUnit:
    """A unit: at most two clips, in one model or two."""

    name: str
    models: tuple[SourceModel, ...]

    @property
    def textures(self) -> set[Path]:
        return {path for model in self.models for path in model.textures}

    @property
    def clips(self) -> list[SourceClip]:
        return [clip for model in self.models for clip in model.clips]


def select_units(factions: Path) -> list[SourceUnit]:
    """The units with clips that move enough; what another unit already shows, frame for frame, is left out."""
    units, seen = [], set()
    for faction in FACTIONS:
        for folder in sorted((factions / faction / "units").glob("*/")):
            clips = [clip for path in sorted(folder.glob("models/*.g3d")) if (clip := qualify(path))]
            best = _two_clips([clip for clip in clips if _identity(clip) not in seen])
            seen.update(_identity(clip) for clip in best)
            shapes: dict[tuple, list[SourceClip]] = {}
            for clip in best:
                shape = [(_texture_file(clip.path, m), m.triangles.tobytes(), m.uv.tobytes()) for m in clip.meshes]
                shapes.setdefault(tuple(shape), []).append(clip)
            models = [SourceModel(tuple(found), tuple(part[0] for part in shape)) for shape, found in shapes.items()]
            if models:
                units.append(SourceUnit(f"{faction}_{folder.name}", tuple(models)))
    return units


def qualify(path: Path) -> SourceClip | None:
    """The clip in a file, or None if it is not to be used: static, too large, untextured, or leaving its place."""
    stem = path.stem.lower()
    words = "_".join(stem.split("_")[1:])  # the first word is the unit's own name
    if any(word in stem for word in UNUSED):
        return None
    meshes = tuple(mesh for mesh in read_g3d(path) if mesh.positions.shape[1] and mesh.uv is not None)
    if not meshes or sum(len(mesh.triangles) for mesh in meshes) >= 1500 or len(meshes) > 6:
        return None
    if any(_texture_file(path, mesh) is None for mesh in meshes):
        return None
    count = max(len(mesh.positions) for mesh in meshes)
    if count < 6 or any(len(mesh.positions) not in (1, count) for mesh in meshes):
        return None
    positions = np.concatenate([np.broadcast_to(m.positions, (count, *m.positions.shape[1:])) for m in meshes], 1)
    sizes = np.ptp(positions, 1).max(-1)
    height = float(np.median(np.ptp(positions[..., 1], 1)))
    motion = float(np.percentile(np.linalg.norm(np.ptp(positions, 0), axis=-1), 90)) / height
    if motion < 0.12 or np.ptp(positions, (0, 1)).max() > 2.0 * np.median(sizes):
        return None
    meshes = tuple(_whole_length(mesh, count) for mesh in meshes)
    kind = next((kind for kind, marks in WORDS.items() if any(mark in words for mark in marks)), "stand")
    return SourceClip(kind, meshes, motion, path)


def split_units(units: list[SourceUnit]) -> dict[str, str]:
    """Unit name -> split. Units that share a texture, a near copy of one, or a body are never parted."""
    group = {unit.name: unit.name for unit in units}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    pictures = {path: _thumbnail(path) for unit in units for path in unit.textures}
    contents = {unit.name: {content_hash(path) for path in unit.textures} for unit in units}
    bodies = {unit.name: _body(unit) for unit in units}
    for i, one in enumerate(units):
        for other in units[:i]:
            shared = len(bodies[one.name] & bodies[other.name]) / min(len(bodies[one.name]), len(bodies[other.name]))
            near = (np.abs(pictures[p] - pictures[q]).mean() < 10 for p in one.textures for q in other.textures)
            if contents[one.name] & contents[other.name] or shared > 0.25 or any(near):
                group[root(one.name)] = root(other.name)
    members: dict[str, list[str]] = {}
    for unit in units:
        members.setdefault(root(unit.name), []).append(unit.name)
    splits = {unit.name: "train" for unit in units}
    wanted = {split: round(len(units) * share) for split, share in SPLIT_SHARES.items()}
    for names in sorted(members.values(), key=lambda names: stable_number(min(names))):
        for split, count in wanted.items():
            if len(names) <= min(count, 3):
                splits |= dict.fromkeys(names, split)
                wanted[split] -= len(names)
                break
    return splits


def choose_grounds(tilesets: Path, count: int) -> list[tuple[str, Path]]:
    """`count` ground textures as unlike each other as can be: farthest-point choice over small colour pictures."""
    import xml.etree.ElementTree as ElementTree

    found = {}
    for description in sorted(tilesets.glob("*/*.xml")):
        for texture in ElementTree.parse(description).iterfind(".//surfaces//texture"):
            path = (description.parent / texture.get("path", "")).resolve()
            inside = path.is_relative_to(tilesets.resolve())
            if inside and path.is_file() and path.suffix.lower() in (".bmp", ".png", ".jpg", ".tga"):
                name = f"{path.parent.parent.name}_{path.stem}".lower()
                found.setdefault(content_hash(path), (name, path))
    items = sorted(found.values())
    if not items:
        raise UserError(f"no ground textures under {tilesets}: unpack the whole package there")
    features = np.stack([_ground_feature(path) for _, path in items])
    chosen = [0]
    distance = np.linalg.norm(features - features[0], axis=1)
    while len(chosen) < min(count, len(items)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return [items[i] for i in sorted(chosen)]


def content_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stable_number(text: str) -> int:
    """A number from a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _two_clips(clips: list[SourceClip]) -> list[SourceClip]:
    """One clip of each kind, the one that moves most, at most two by the order of KINDS."""
    by_kind = {kind: [clip for clip in clips if clip.kind == kind] for kind in KINDS}
    return [max(found, key=lambda clip: clip.motion) for found in by_kind.values() if found][:2]


def _identity(clip: SourceClip) -> tuple:
    """Equal for clips that show the same motion of the same body in the same textures."""
    return tuple(
        (content_hash(_texture_file(clip.path, m)), m.positions.tobytes(), m.triangles.tobytes()) for m in clip.meshes
    )


def _body(unit: SourceUnit) -> set[bytes]:
    """The first frame's vertices of every clip to 1 %, as a set: much of it is shared by units with the same body."""
    positions = np.concatenate([mesh.positions[0] for clip in unit.clips for mesh in clip.meshes])
    return {row.tobytes() for row in np.rint(positions * 100).astype(np.int32)}


def _texture_file(path: Path, mesh: G3DMesh) -> Path | None:
    file = path.parent / mesh.texture
    inside = file.resolve().is_relative_to(path.parents[4].resolve())  # the folder of factions
    return file if mesh.texture and inside and file.is_file() else None


def _whole_length(mesh: G3DMesh, count: int) -> G3DMesh:
    fields = {**mesh.__dict__, "positions": np.broadcast_to(mesh.positions, (count, *mesh.positions.shape[1:]))}
    return G3DMesh(**fields)


def _thumbnail(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB").resize((24, 24), Image.Resampling.BOX), np.float32)


def _ground_feature(path: Path) -> np.ndarray:
    """Mean colour and the strength of contrast at two scales, [9]."""
    small = _thumbnail(path)
    coarse = rearrange(small, "(h i) (w j) c -> h w i j c", i=6, j=6).mean((2, 3))
    return np.concatenate([small.mean((0, 1)), small.std((0, 1)), coarse.std((0, 1))])
