"""Scenes of a data set in ArrayRecord shards (see `data/records.py`), of today's format and of those before.

In version 2.0 depth and subject were in the records of the frames. Before version 2 a record was a scene, all of one shape,
which the features tell.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fourreal.data.records import LATER, Stored, damage, data_set_hash, index_file, info_file, units_of
from fourreal.data.source import Source
from fourreal.errors import UserError
from fourreal.scene import Cameras, Cut, Deferred, Scene, box_means, reduced_cameras, reduced_frames

KEYS = {"frames", "scene"}
CLASSES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in ("features_dict.FeaturesDict", "tensor_feature.Tensor", "scalar.Scalar", "text_feature.Text")
}


@dataclass(frozen=True)
class Records(Source):
    """The scenes of a data set on disk."""

    kind: ClassVar[str] = "records"

    folder: str = "data/render64"
    """folder of the data set"""
    reduce: int = 1
    """pixels a side of the boxes whose means are the pixels: 4 makes 32 x 32 of 128 x 128"""

    def __post_init__(self):
        if not 1 <= self.reduce <= 1024:
            raise UserError(f"records: reduce is {self.reduce}: give 1 to 1024")

    def open(self, split: str) -> "RecordScenes | ReducedScenes":
        """The scenes of a split. Raises MissingFile where there is no data set, UserError where it lacks the split."""
        scenes = RecordScenes(self.folder, split)
        return scenes if self.reduce == 1 else ReducedScenes(scenes, self.reduce)


class RecordScenes:
    """Random access to the scenes of one split of a data set; several threads may read, and it travels to processes."""

    def __init__(self, folder: Path | str, split: str):
        self.folder, self.split = Path(folder), split
        info_file(self.folder)
        with damage(self.folder):
            features = _checked_features(self.folder / "features.json")
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(str(self.folder))
        if split not in builder.info.splits:
            raise UserError(f"{self.folder} has no split '{split}': it has {', '.join(sorted(builder.info.splits))}")
        with damage(self.folder):
            self.fingerprint = data_set_hash(self.folder)
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._open = partial(builder.as_data_source, split, deserialize_method=raw)
            self._records = self._open()
            self._first_features, self._later_features = (
                tfds.features.FeaturesDict({name: builder.info.features[name] for name in names})
                for names in (features["names"] - set(LATER), features["names"] & set(LATER))
            )
            index = index_file(self.folder, split)
            self.partial = not features["names"].isdisjoint(("exists", "valid"))
            self.codec = (builder.info.metadata or {}).get("codec")
            self._listed = list(_stored(index)) if index.is_file() or not features["shape"] else None
            self._shape = features["shape"]
            self._first = np.cumsum([0, *(scene.records for scene in self._listed or ())])
            if self._listed is not None and self._first[-1] != len(self._records):
                raise UserError(
                    f"{index.name} tells of {self._first[-1]} records, the shards hold {len(self._records)}"
                )

    def __len__(self) -> int:
        return len(self._records) if self._listed is None else len(self._listed)

    def shape(self, i: int) -> tuple[int, int, int, int]:
        """(views, times, height, width) of scene `i`, from the index."""
        return self._stored(i).shape[:4]

    def units(self, i: int) -> frozenset[str]:
        """The units that scene `i` shows."""
        if self._listed is None:
            return frozenset(units_of(_text(self._record(i, i))))
        return frozenset(self._stored(i).units)

    def read(self, i: int, cut: Cut) -> Scene:
        """The cut of scene `i`, from the records that hold cells of it. Raises UserError for a cut that is not in it.

        `more` has depth and subject [v t h w] where they were stored, decoded when they are asked for, and scene, the JSON of
        what was made; with text, empty_text [n k].
        """
        stored = self._stored(i)
        cut = Cut(*(np.asarray(positions) for positions in cut))
        for name, positions, count in zip(("views", "times"), cut, stored.shape, strict=False):
            whole = positions.ndim == 1 and len(positions) and positions.dtype.kind in "iu"
            if not whole or positions.min() < 0 or positions.max() >= count:
                raise UserError(f"scene {i} has {count} {name}: asked for {positions.tolist()}, give 0 to {count - 1}")
        first = int(self._first[i]) if self._listed is not None else i

        def gathered(later: bool) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for record, rows, columns, v, t in _tiles(stored, cut):
                chunk = self._record(i, first + record + later * stored.apart * stored.records // 2, later)
                with self._damage(i):
                    for name, value in chunk.items():
                        _put(found, name, value, cut, (rows, columns), (v, t))
            return found

        found, rest = gathered(later=False), cache(partial(gathered, later=True))
        more = {name: lambda name=name: rest()[name] for name in self._later_features}
        if (empty := _told(found, "empty_text")) is not None:
            more["empty_text"] = lambda: empty
        with self._damage(i):
            return _scene(found, i, Deferred(more | {"scene": partial(_text, found)}))

    def _stored(self, i: int) -> Stored:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.folder} has {len(self)} scenes in {self.split}, not {i}")
        return Stored(self._shape, self._shape[:2], (), 0) if self._listed is None else self._listed[i]

    def _record(self, i: int, place: int, later: bool = False) -> dict[str, Any]:
        with self._damage(i):
            features = self._later_features if later else self._first_features
            try:
                return features.deserialize_example_np(self._records[place])
            except RuntimeError:  # of ArrayRecord, whose reader then fails at this record for ever
                self._records = self._open()
                raise

    def _damage(self, i: int) -> Any:
        return damage(f"{self.folder}, grid {i} of {self.split},")

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "split": self.split}  # open files do not travel to other processes

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


class ReducedScenes:
    """The scenes of a data set with frames reduced by boxes; see `reduced`."""

    def __init__(self, scenes: RecordScenes, boxes: int):
        self.scenes, self.boxes = scenes, boxes
        self.partial, self.units, self.codec = scenes.partial, scenes.units, scenes.codec
        self.fingerprint = f"{scenes.fingerprint} reduced by {boxes}"

    def __len__(self) -> int:
        return len(self.scenes)

    def shape(self, i: int) -> tuple[int, int, int, int]:
        """(views, times, height, width) of scene `i`. Raises UserError where boxes do not divide the frames."""
        views, times, height, width = self.scenes.shape(i)
        if height % self.boxes or width % self.boxes:
            raise UserError(f"scene {i} has frames of {height} x {width}: give a reduce that divides both")
        return views, times, height // self.boxes, width // self.boxes

    def read(self, i: int, cut: Cut) -> Scene:
        """The cut of scene `i`."""
        self.shape(i)
        return reduced(self.scenes.read(i, cut), self.boxes)


def reduced(scene: Scene, boxes: int) -> Scene:
    """A scene whose pixels are means over boxes: valid where all of a box is, the subject's where most is, and its cameras."""
    if scene.frames.dtype != np.uint8:
        raise UserError(f"scene {scene.index} is stored as latents, which cannot be reduced: leave reduce out")

    def more(name: str) -> Any:
        value = scene.more[name]
        if name not in LATER:
            return value
        mean = box_means(value, boxes)
        return (mean >= 0.5 if name == "subject" else mean).astype(value.dtype)

    return scene._replace(
        frames=reduced_frames(scene.frames, boxes),
        valid=None if scene.valid is None else box_means(scene.valid, boxes) == 1,
        cameras=scene.cameras and reduced_cameras(scene.cameras, boxes),
        more=Deferred({name: partial(more, name) for name in scene.more}),
    )


PER_VIEW, PER_CELL = {"K", "c2w"}, {"frames", "exists", "valid", *LATER}


def _tiles(stored: Stored, cut: Cut) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The tiles that a cut needs: record, positions in the cut's views and times, positions in the tile's."""
    (high, wide), across = stored.tile, stored.tiles[1]
    for a in np.unique(cut.views // high):
        rows = np.flatnonzero(cut.views // high == a)
        for b in np.unique(cut.times // wide):
            columns = np.flatnonzero(cut.times // wide == b)
            yield int(a * across + b), rows, columns, cut.views[rows] - a * high, cut.times[columns] - b * wide


def _put(found: dict, name: str, value: Any, cut: Cut, to: tuple, at: tuple) -> None:
    """Puts what a tile holds of the cut where it belongs; what is the whole scene's comes from the last tile."""
    if name in PER_CELL and value.size:
        shape = (len(cut.views), len(cut.times), *value.shape[2:])
        found.setdefault(name, np.empty(shape, value.dtype))[np.ix_(*to)] = value[np.ix_(*at)]
    elif name in PER_VIEW and value.size:
        found.setdefault(name, np.empty((len(cut.views), *value.shape[1:]), value.dtype))[to[0]] = value[at[0]]
    elif name not in PER_CELL | PER_VIEW:
        found[name] = value


def _scene(found: dict[str, Any], i: int, more: Deferred) -> Scene:
    """What the tiles gave, as a scene."""
    focus = np.float32(found.get("focus", np.nan))
    cameras = Cameras(found["K"], found["c2w"], None if np.isnan(focus) else focus) if "K" in found else None
    return Scene(found["frames"], i, found.get("exists"), found.get("valid"), cameras, _told(found, "text"), more)


def _told(found: dict[str, Any], name: str) -> Any:
    """What a record says by a small array; one without elements says nothing."""
    value = found.get(name)
    return value if value is not None and value.size else None


def _text(record: dict[str, Any]) -> str:
    text = record["scene"]
    return text.decode() if isinstance(text, bytes) else str(text)


def _stored(path: Path) -> Iterator[Stored]:
    """The lines of an index; the same units are one object."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            units = tuple(entry["units"])
            shape, tile = (tuple(map(int, entry[name])) for name in ("shape", "tile"))
            if len(shape) != 5 or len(tile) != 2 or min(*shape, *tile) < 1:
                raise ValueError(f"{path.name} says {line.strip()}")
            crc, apart = int(entry["crc"]), bool(entry.get("apart", False))
            yield Stored(shape, tile, known.setdefault(units, units), crc, apart)


def _checked_features(path: Path) -> dict[str, Any]:
    """The names of the features, and the shape of the frames of the old format, None of today's.

    Raises unless the features are what is written here: tfds imports the classes that the file names.
    """
    features = json.loads(path.read_text())
    entries = features["featuresDict"]["features"]
    kinds = {name: entry["pythonClassName"] for name, entry in entries.items()}
    if not kinds.keys() >= KEYS or not {features["pythonClassName"], *kinds.values()} <= CLASSES:
        raise UserError(f"its features are {kinds}")
    shape = [int(size) for size in entries["frames"]["tensor"]["shape"]["dimensions"]]
    return {"names": set(entries), "shape": tuple(shape) if min(shape) > 0 else None}
