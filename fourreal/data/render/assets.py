"""Finds the animated units and the ground textures that scenes are made of, by split.

The bundled pack has a `manifest.json` (see pack.py). Any other folder of `.glb` files works as well, without one: every
animation of every file is a clip, and a file's split follows from its name (of 100: 80 train, 8 validation, 12 test), so
adding files never moves others. Grounds are the pictures in its subfolder `grounds`, or the bundled ones if there is none.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourreal.data.render.gltf import AnimatedModel
from fourreal.errors import MissingFile, UserError

BUNDLED = Path(__file__).parents[2] / "assets" / "units"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class UnitClip:
    """One clip of one file."""

    unit: str
    file: str
    clip: str
    split: str


class Assets:
    """A folder of units and grounds. Raises FileNotFoundError where there is nothing to use."""

    def __init__(self, folder: Path | str | None = None):
        self.folder = Path(folder) if folder else BUNDLED
        self.model = functools.lru_cache(maxsize=64)(self._model)
        self.picture = functools.lru_cache(maxsize=64)(self._picture)
        if (self.folder / "manifest.json").is_file():
            self._clips, grounds = _read_manifest(self.folder / "manifest.json")
        else:
            self._clips = [
                UnitClip(path.stem, path.name, clip, split_of(path.stem))
                for path in sorted(self.folder.glob("*.glb"))
                for clip in AnimatedModel(path).clips
            ]
            pictures = [
                path for path in sorted(self.folder.glob("grounds/*")) if path.suffix in (".jpg", ".jpeg", ".png")
            ]
            grounds = {str(path.relative_to(self.folder)): split_of(path.stem) for path in pictures}
        if not self._clips:
            raise MissingFile(f"{self.folder} holds no animated .glb file: put at least one there")
        self._ground_folder = self.folder if grounds or self.folder == BUNDLED else BUNDLED
        self._grounds = grounds or Assets()._grounds

    def check(self) -> None:
        """Reads every file once; ValueError for one that cannot be used. (The bundled ones have tests.)"""
        for file in dict.fromkeys(clip.file for clip in self._clips):
            model = self.model(file)
            if lost := [clip.clip for clip in self._clips if clip.file == file and clip.clip not in model.clips]:
                raise UserError(f"{model.path} has no clip '{lost[0]}': its clips are {sorted(model.clips)}")
            model.check()
        for file in self._grounds:
            self.ground(file)

    def clips(self, split: str) -> list[UnitClip]:
        """The clips of a split, in a fixed order. Raises ValueError if it has none."""
        found = [clip for clip in self._clips if clip.split == split]
        if split not in SPLITS:
            raise UserError(f"there is no split '{split}': choose one of {', '.join(SPLITS)}")
        if not found:
            raise UserError(
                f"{self.folder} has no unit in the split '{split}': add .glb files, or ask for no grids of it"
            )
        return found

    def units(self, split: str) -> list[str]:
        """The names of a split's units."""
        return sorted({clip.unit for clip in self.clips(split)})

    def grounds(self, split: str) -> list[str]:
        """The ground pictures of a split (of all, where the split has none), as files for `ground`."""
        return [name for name, where in self._grounds.items() if where == split] or list(self._grounds)

    def ground(self, file: str) -> np.ndarray:
        """A ground picture, uint8 [h, w, 3]."""
        return self.picture(self._ground_folder / file)

    def _model(self, file: str) -> AnimatedModel:
        return AnimatedModel(self.folder / file)

    def _picture(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            return np.asarray(Image.open(path, formats=("PNG", "JPEG")).convert("RGB"))
        except Exception as error:  # a damaged picture can make its reader raise anything
            raise UserError(f"{path} cannot be read ({error}): expected a png or jpeg; replace it") from error


def _read_manifest(path: Path) -> tuple[list[UnitClip], dict[str, str]]:
    """The clips and the grounds (file -> split) of a manifest; ValueError if it is none or names files elsewhere."""
    try:
        manifest = json.loads(path.read_text())
        clips = [
            UnitClip(unit["name"], clip["file"], clip["name"], unit["split"])
            for unit in manifest["units"]
            for clip in unit["clips"]
        ]
        grounds = {entry["file"]: entry["split"] for entry in manifest["grounds"]}
        elsewhere = [f for f in [*grounds, *(c.file for c in clips)] if Path(f).is_absolute() or ".." in Path(f).parts]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no manifest of a pack ({reason}): build the pack again, or delete it") from error
    if elsewhere:
        raise UserError(f"{path} names a file outside its folder, {elsewhere[0]}: build the pack again, or delete it")
    return clips, grounds


def split_of(name: str) -> str:
    """The split of a file without a manifest, from the hash of its name."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") % 100
    return "train" if place < 80 else "validation" if place < 88 else "test"
