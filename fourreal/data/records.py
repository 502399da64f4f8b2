"""How scenes lie in a data set: ArrayRecord shards that TensorFlow Datasets reads, written and read without TensorFlow.

A record is a chunk of a scene: the cells (v, t) of one tile of its views and times, with everything that belongs to them.
A scene of at most 4 MiB is one tile. A larger one is cut into tiles of `tile` = (views, times), the last ones smaller, that
follow each other as v // tile[0], t // tile[1] count them; so a cut reads little more than its own cells. Where there are
depth or subject, which training does not read, they follow in as many records of their own (`apart`), and a few ones
stand for what is in the other:

    frames    uint8 or float [v t h w c]       pixels or latents; depth float16 and subject uint8 [v t h w], where it has them
    exists    bool [v t]    valid bool [v t h w]    K float32 [v 3 3]    c2w float32 [v 4 4]
    text      float32 [l k]    empty_text float32 [n k]     features of its prompt, and of the empty one
    views     int32 [v]     times int32 [t]         which of the scene's they are
    scene     text          candidate int64         what was made, and its number among all that were tried
    focus     float32       NaN where it is unknown

What a scene lacks has no elements. Pixels are compressed by ArrayRecord (zstd), the small arrays by tfds (zlib), which
reads arrays without elements only so. `scenes-SPLIT.jsonl` says of each scene, in order, its shape, its tile, the units
that it shows and the CRC-32 of its records: a cut is found and the units are known without reading pixels.
"""

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fourreal.errors import FAULTS, Damaged, MissingFile, UserError
from fourreal.host.retry import errno_of
from fourreal.scene import Scene

RECORD_BYTES = 2**22  # that a tile of several cells has at most
CELL_BYTES = 2**26
SHARD_BYTES = 2**28 - 2**20  # of records; what ArrayRecord adds to them fits into the rest of 256 MiB
NAME = "grids"
DESCRIPTION = "4D grids: V views at T times, with what is known of their cells and cameras."
LATER = ("depth", "subject")  # read when they are asked for
ONE_CELL = {"frames": 5, "depth": 4, "subject": 4}  # axes
SMALL = {
    "exists": (2, "bool"),
    "valid": (4, "bool"),
    "K": (3, "float32"),
    "c2w": (3, "float32"),
    "text": (2, "float32"),
    "empty_text": (2, "float32"),
}
DTYPES = {"frames": ("uint8", "float32", "float16"), "depth": ("float16",), "subject": ("uint8",)}


class Stored(NamedTuple):
    """Where a scene lies: its shape (views, times, height, width, channels), tile, units, its records' CRC-32, and whether
    depth and subject are apart."""

    shape: tuple[int, ...]
    tile: tuple[int, int]
    units: tuple[str, ...]
    crc: int
    apart: bool = False

    @property
    def tiles(self) -> tuple[int, int]:
        """How many tiles its views and its times take."""
        return -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])

    @property
    def records(self) -> int:
        """How many records it takes."""
        return math.prod(self.tiles) * (1 + self.apart)


class ShardWriter:
    """Appends scenes to the files `PREFIX.0`, `PREFIX.1`, ..., none larger than 256 MiB. `close` it."""

    def __init__(self, prefix: Path):
        self.prefix = prefix
        self.files: list[dict[str, Any]] = []
        """name, number of records and bytes of each file"""
        self.arrays: dict[str, str] | None = None
        """dtypes of the arrays that every scene must have, known from the first"""
        self._writer = self._serialize = None

    def write(self, scene: Scene, candidate: int = 0) -> Stored:
        """Appends a scene. Raises UserError for one whose arrays do not fit together, or are not those of the first."""
        cells = _cells(scene)
        arrays = {name: str(array.dtype) for name, array in cells.items()}
        if self.arrays is None:
            self.arrays, self._serialize = arrays, serializer(arrays)
        check_same(self.arrays, arrays, f"scene {candidate}")
        views, times = scene.frames.shape[:2]
        tile = tile_of(views, times, sum(array[0, 0].nbytes for array in cells.values()))
        crc, apart = 0, not cells.keys().isdisjoint(LATER)
        for later in (False, True)[: 1 + apart]:
            for v in range(0, views, tile[0]):
                for t in range(0, times, tile[1]):
                    example = _chunk(scene, cells, slice(v, v + tile[0]), slice(t, t + tile[1]), later)
                    record = self._serialize({**example, "candidate": candidate})
                    crc = zlib.crc32(record, crc)
                    self.append(record)
        return Stored(scene.frames.shape, tile, units_of(scene.more.get("scene", "{}")), crc, apart)

    def append(self, record: bytes) -> None:
        """Appends a record as it is, in a new file where it would make this one too large."""
        if self._writer is None or self.files[-1]["bytes"] + len(record) > SHARD_BYTES:
            from array_record.python.array_record_module import ArrayRecordWriter

            self.close()
            path = self.prefix.with_name(f"{self.prefix.name}.{len(self.files)}")
            self.files.append({"name": path.name, "records": 0, "bytes": 0})
            self._writer = ArrayRecordWriter(str(path), "group_size:1")
        self._writer.write(record)
        self.files[-1]["records"] += 1
        self.files[-1]["bytes"] += len(record)

    def close(self) -> None:
        """Finishes the file at hand."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def tile_of(views: int, times: int, cell_bytes: int) -> tuple[int, int]:
    """The views and times of a tile: all of them, or the longer axis halved until it has at most 4 MiB or is one cell."""
    if cell_bytes > CELL_BYTES:
        raise UserError(
            f"a frame of {cell_bytes} bytes does not fit into a record of {CELL_BYTES}: make frames smaller"
        )
    while views * times * cell_bytes > RECORD_BYTES and views * times > 1:
        views, times = (views, -(-times // 2)) if times >= views else (-(-views // 2), times)
    return views, times


def features(arrays: dict[str, str]) -> Any:
    """tfds' features of records whose pixel arrays have these dtypes."""
    import tensorflow_datasets as tfds

    def tensor(axes: int, dtype: str, encoding: str) -> Any:
        return tfds.features.Tensor(shape=(None,) * axes, dtype=np.dtype(dtype), encoding=encoding)

    return tfds.features.FeaturesDict(
        {name: tensor(ONE_CELL[name], dtype, "bytes") for name, dtype in arrays.items()}
        | {name: tensor(axes, dtype, "zlib") for name, (axes, dtype) in SMALL.items()}
        | {name: tensor(1, "int32", "zlib") for name in ("views", "times")}
        | {"candidate": tfds.features.Scalar(np.int64), "focus": tfds.features.Scalar(np.float32)}
        | {"scene": tfds.features.Text()}
    )


def serializer(arrays: dict[str, str]) -> Callable[[dict[str, Any]], bytes]:
    """From an example to a record: equal examples give equal bytes in every process."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    known = features(arrays)
    protos = ExampleSerializer(known.get_serialized_info())
    return lambda example: protos.get_tf_example(known.encode_example(example)).SerializeToString(deterministic=True)


def write_description(folder: Path, splits: dict[str, list[dict]], arrays: dict[str, str], about: dict, licence: str):
    """Writes what `tfds.builder_from_directory` reads, beside shards that have their names already.

    `splits` gives of each split the number of records and bytes of each file, `about` JSON values for the metadata.
    """
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(split, [file["records"] for file in files], sum(file["bytes"] for file in files))
        for split, files in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features(arrays),
        split_infos=infos,
        version="2.1.0",
        check_data=False,  # that would import TensorFlow
        description=DESCRIPTION,
        license=licence,
        disable_shuffling=True,  # a record's place says which chunk it is
        metadata=tfds.core.MetadataDict(about),
    )


def shard_name(split: str, number: int, count: int) -> str:
    """A shard's file name, as tfds expects it."""
    return f"{NAME}-{split}.array_record-{number:05}-of-{count:05}"


def index_file(folder: Path, split: str) -> Path:
    """Where the scenes of a split are listed. Data sets written before version 2 have none: there a record is a scene."""
    return folder / f"scenes-{split}.jsonl"


def info_file(folder: Path) -> Path:
    """What describes a data set. Raises MissingFile where there is none."""
    found = folder / "dataset_info.json"
    if not found.is_file():
        raise MissingFile(f"{folder} holds no data set: render one with `fourreal data render --out {folder}`")
    return found


def data_set_hash(folder: Path | str) -> str:
    """SHA-256 of what describes a data set: its splits, their sizes, their scenes. Raises MissingFile for none."""
    folder = Path(folder)
    digest = hashlib.sha256(info_file(folder).read_bytes())
    for path in sorted(folder.glob(index_file(folder, "*").name)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def damage(what: Path | str) -> Iterator[None]:
    """Whatever goes wrong in a data set, as one line that names it; a fault that may pass is raised as it is.

    Raises Damaged for files that are broken or gone, of which ArrayRecord tells by RuntimeError.
    """
    try:
        yield
    except Exception as error:
        if errno_of(error) in FAULTS:
            raise
        kind = Damaged if isinstance(error, RuntimeError) else UserError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise kind(f"{what} cannot be read as a data set of grids ({reason}): render or copy it again") from error


def units_of(scene: str) -> tuple[str, ...]:
    """The units that a scene shows, from its JSON, in alphabetical order."""
    return tuple(sorted({subject["unit"] for subject in json.loads(scene).get("subjects", ())}))


def check_same(expected: dict[str, str], found: dict[str, str], what: str) -> None:
    """Raises UserError where scenes of one data set would have other arrays."""
    if expected != found:
        raise UserError(f"{what} has {found}, the scenes before it {expected}: write scenes of one kind to a data set")


def _cells(scene: Scene) -> dict[str, np.ndarray]:
    """The arrays of every pixel, [v t h w ...]. Raises UserError where shapes or dtypes are not the scene's."""
    cells = {"frames": scene.frames} | {name: scene.more[name] for name in ("depth", "subject") if name in scene.more}
    if unknown := scene.more.keys() - {"depth", "subject", "scene", "empty_text"}:
        raise UserError(f"a data set has no place for {', '.join(sorted(unknown))}: leave it out of the scene's `more`")
    if scene.frames.ndim != 5 or 0 in scene.frames.shape:
        raise UserError(
            f"frames of shape {scene.frames.shape} are no grid: give [views, times, height, width, channels]"
        )
    views, times, height, width, _ = scene.frames.shape
    shapes = {
        "exists": (views, times),
        "valid": (views, times, height, width),
        "K": (views, 3, 3),
        "c2w": (views, 4, 4),
    }
    known = {"exists": scene.exists, "valid": scene.valid}
    known |= {"K": scene.cameras.K, "c2w": scene.cameras.c2w} if scene.cameras else {}
    for name, array in (cells | known).items():
        shape = scene.frames.shape if name == "frames" else shapes.get(name, shapes["valid"])
        if array is not None and array.shape != shape:
            raise UserError(f"{name} has the shape {array.shape}: expected {shape}, as the frames have")
    for name, dtypes in (DTYPES | {"exists": ("bool",), "valid": ("bool",)}).items():
        array = (cells | known).get(name)
        if array is not None and str(array.dtype) not in dtypes:
            raise UserError(f"{name} is {array.dtype}: expected {' or '.join(dtypes)}")
    return cells


def _chunk(scene: Scene, cells: dict[str, np.ndarray], v: slice, t: slice, later: bool) -> dict[str, Any]:
    """The example of one tile of a scene: all but depth and subject, or these alone (`later`)."""
    views, times = scene.frames.shape[:2]
    cameras = scene.cameras
    small = {
        "exists": None if scene.exists is None else scene.exists[v, t],
        "valid": None if scene.valid is None else scene.valid[v, t],
        "K": None if cameras is None else cameras.K[v],
        "c2w": None if cameras is None else cameras.c2w[v],
        "text": scene.text,
        "empty_text": scene.more.get("empty_text"),
    }
    empty = {name: np.empty((0,) * axes, dtype) for name, (axes, dtype) in SMALL.items()}

    def elsewhere(x: np.ndarray) -> np.ndarray:
        return np.ones((*(1,) * (x.ndim - 1), x.ndim), x.dtype)  # tfds reads no array of fewer bytes than axes

    if later:
        small = {}
    given = {name: np.asarray(array, SMALL[name][1]) for name, array in small.items() if array is not None}
    return (
        {n: x[v, t] if (n in LATER) == later else elsewhere(x) for n, x in cells.items()}
        | empty
        | given
        | {
            "views": np.arange(views, dtype=np.int32)[v],
            "times": np.arange(times, dtype=np.int32)[t],
            "focus": np.float32(np.nan if cameras is None or cameras.focus is None else cameras.focus),
            "scene": scene.more.get("scene", "{}"),
        }
    )
