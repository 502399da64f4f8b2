"""Writes and reads data sets of 4D grids: ArrayRecord files through a TensorFlow Datasets builder, without TensorFlow.

An example is a dict: frames uint8 [v, t, h, w, 3], depth float16 [v, t, h, w] (z in scene units, 0 in the sky), subject
uint8 [v, t, h, w] (1 = on a subject), K float32 [v, 3, 3], c2w float32 [v, 4, 4] (OpenCV), index int64 (position in the
split) and scene str (JSON, see scenes.py).
"""

import contextlib
import functools
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

KEYS = {"frames", "depth", "subject", "K", "c2w", "index", "scene"}
CLASSES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in ("features_dict.FeaturesDict", "tensor_feature.Tensor", "scalar.Scalar", "text_feature.Text")
}
DESCRIPTION = "Rendered 4D grids: V synchronised views at T times, with depth, subject masks and exact cameras."


def write_grids(path: Path, streams: dict[str, Iterable[dict]], shape: tuple[int, int, int], notes: dict) -> None:
    """Writes one data set to the folder `path`, which appears only when all of it is there.

    `streams` gives each split's examples (without empty splits), `shape` is (views, times, size), `notes` JSON values kept
    in the data set's metadata. Raises FileExistsError if `path` exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already: name another folder or overwrite it")
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    building = path.with_name(path.name + ".incomplete")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        builder = _builder_class()(
            data_dir=str(building), file_format="array_record", streams=streams, shape=shape, notes=notes
        )
        with contextlib.redirect_stdout(io.StringIO()):  # tfds announces a download that is none
            builder.download_and_prepare()
        Path(builder.data_dir).rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class GridSource:
    """Random access to the grids of one split: `len(source)`, `source[i]` -> dict of numpy arrays (see the module)."""

    def __init__(self, path: Path | str, split: str):
        self.path, self.split = Path(path), split
        self._open()

    def _open(self) -> None:
        _info_file(self.path)
        with _damage(self.path):
            _check_features(self.path / "features.json")
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(str(self.path))
        if self.split not in builder.info.splits:
            raise ValueError(
                f"{self.path} has no split '{self.split}': it has {', '.join(sorted(builder.info.splits))}"
            )
        with _damage(self.path):
            self._source = builder.as_data_source(split=self.split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        with _damage(f"{self.path}, grid {index} of {self.split},"):
            example = dict(self._source[int(index)])
        scene = example["scene"]
        example["scene"] = scene.decode() if isinstance(scene, bytes) else str(scene)
        example["index"] = np.int64(example["index"])
        return example

    def __getstate__(self) -> dict:
        return {"path": self.path, "split": self.split}  # open files do not travel to other processes

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def _check_features(path: Path) -> None:
    """ValueError unless they are what `write_grids` writes: tfds imports the classes that the file names."""
    features = json.loads(path.read_text())
    kinds = {name: entry["pythonClassName"] for name, entry in features["featuresDict"]["features"].items()}
    if kinds.keys() != KEYS or not {features["pythonClassName"], *kinds.values()} <= CLASSES:
        raise ValueError(f"its features are {kinds}")


@contextlib.contextmanager
def _damage(what: Path | str) -> Iterator[None]:
    """Whatever goes wrong in a data set, as one line that names it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{what} cannot be read as a data set of grids ({reason}): render or copy it again") from error


def data_set_hash(path: Path | str) -> str:
    """SHA-256 of what describes a data set: its splits, their sizes, how it was rendered. Raises FileNotFoundError for none."""
    return hashlib.sha256(_info_file(Path(path)).read_bytes()).hexdigest()


def _info_file(path: Path) -> Path:
    found = path / "dataset_info.json"
    if not found.is_file():
        raise FileNotFoundError(f"{path} holds no data set: render one with `fourreal data render --out {path}`")
    return found


def open_split(path: Path | str, split: str) -> GridSource:
    """Opens a split. Raises FileNotFoundError where there is no data set, ValueError where it lacks the split."""
    return GridSource(path, split)


@functools.cache
def _builder_class():
    """The builder, made on first use: importing tfds takes seconds."""
    import tensorflow_datasets as tfds

    class Grids(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Grids from streams of rendered examples."""

        VERSION = tfds.core.Version("1.0.0")
        name = "grids"

        def __init__(self, *, streams, shape, notes, **kwargs):
            self.streams, self.shape, self.notes = streams, shape, notes
            super().__init__(**kwargs)

        def _info(self):
            views, times, size = self.shape
            cell = (views, times, size, size)

            def tensor(shape, dtype):
                # zlib keeps files small; tfds' default for tensors is slow and larger than the pixels
                return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

            features = {
                "frames": tensor((*cell, 3), np.uint8),
                "depth": tensor(cell, np.float16),
                "subject": tensor(cell, np.uint8),
                "K": tensor((views, 3, 3), np.float32),
                "c2w": tensor((views, 4, 4), np.float32),
                "index": tfds.features.Scalar(np.int64),
                "scene": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=DESCRIPTION,
                features=tfds.features.FeaturesDict(features),
                license="CC-BY-SA-3.0",
                disable_shuffling=True,  # an example's place is its index
                metadata=tfds.core.MetadataDict(self.notes),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(stream) for split, stream in self.streams.items()}

        def _generate_examples(self, stream):
            for example in stream:
                yield int(example["index"]), example

    return Grids
