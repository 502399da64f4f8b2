"""`fourreal encode`: a data set of pixels becomes one of a codec's latents, with the features of its captions.

Training on it needs neither the autoencoder nor the text encoder. `fourreal data captions` writes a caption for each scene of
rendered data, to be embedded, or to be replaced by better ones line by line.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from fourreal.codecs import Codec, PixelCodec
from fourreal.codecs.wan import WanCodec
from fourreal.conditions.text import EMPTY
from fourreal.data.records import data_set_hash, info_file
from fourreal.data.source import Scenes
from fourreal.data.sources import Records
from fourreal.data.write import Split, check_data_out, check_workers, write_with_bar
from fourreal.errors import FileInTheWay, UserError
from fourreal.host.folders import write_whole
from fourreal.scene import Cut, Deferred, Scene, reduced_cameras
from fourreal.serialize import read_json
from fourreal.text.file import Texts, captions_of, read_texts

SPLITS = ("train", "validation", "test")
PART = 4  # scenes that a process encodes at a time


@dataclass(frozen=True)
class Encode:
    """Encode a data set of pixels to one of latents and text features. After a kill the same command goes on."""

    dataset: tyro.conf.Positional[Path]
    """folder of the data set, as `fourreal data render` writes it"""
    out: Path
    """folder to write"""
    codec: Codec = WanCodec()
    """what encodes, with its weights: wan:weights=wan-1b/vae; with mode=per_view each view as a video, not each frame alone"""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """features of all captions, as `fourreal embed-text` writes them"""
    captions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """the captions, a line for each scene: those of the training split first, then validation, then test"""
    dtype: Literal["float16", "float32"] = "float16"
    """what latents are stored in; float16 rounds them by 1 in 2,000 and takes half"""
    workers: int = 1
    """processes that encode; on a GPU or TPU take 1, which has all of its devices"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace an existing folder"""

    def run(self) -> None:
        """Encodes and writes. Raises UserError for data, a codec or captions that do not fit, before anything is written."""
        check_workers(self.workers)
        check_data_out(self.out, self.overwrite)
        if self.out.resolve() == self.dataset.resolve():
            raise UserError(f"--out {self.out} is the data set itself: name another folder")
        if self.codec == PixelCodec():
            raise UserError("--codec pixels encodes nothing: give wan or wan2.2, with weights")
        self.codec.parameters()  # says now what is wrong with them
        scenes = {split: Records(str(self.dataset)).open(split) for split in splits_of(self.dataset)}
        captions = self._captions({split: len(each) for split, each in scenes.items()})
        splits = {}
        for split, each in scenes.items():
            if each.codec is not None:
                raise UserError(f"{self.dataset} holds latents already: give a data set of pixels")
            _, times, *frame = each.shape(0)
            self.codec.shape(times, *frame)
            encoder = Encoder(self.codec, self.dtype, str(self.dataset), split, self.text, captions[split])
            splits[split] = Split(encoder.make, len(each), PART)
        weights = getattr(self.codec, "weights", "")
        source = info_file(self.dataset).with_name("metadata.json")
        settings = {
            "codec": self.codec.latents(),
            "dtype": self.dtype,
            "from": {"hash": data_set_hash(self.dataset), "settings": read_json(source) if source.is_file() else {}},
            "text": _hash(self.text, self.captions) if self.text else None,
            "weights": _hash(*sorted(Path(weights).glob("*.safetensors"))) if weights else None,
        }
        began = time.monotonic()
        licence = self.dataset / "LICENSE"
        write_with_bar(
            self.out,
            splits,
            settings=settings,
            licence=licence.read_text() if licence.is_file() else "",
            workers=self.workers,
            overwrite=self.overwrite,
        )
        total, size = sum(map(len, scenes.values())), sum(f.stat().st_size for f in self.out.rglob("*") if f.is_file())
        print(f"{self.out}: {total} grids, {size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s")

    def _captions(self, counts: dict[str, int]) -> dict[str, list[str] | None]:
        """Of each split the captions of its scenes; None without text. Raises UserError for one that has no features."""
        if (self.text is None) != (self.captions is None):
            raise UserError("--text and --captions go together: the features, and a line for each scene that names one")
        if self.text is None:
            return dict.fromkeys(counts)
        lines = captions_of(self.captions, texts_of(self.text))
        if len(lines) != sum(counts.values()):
            raise UserError(
                f"--captions {self.captions} has {len(lines)} lines: expected {sum(counts.values())}, {counts}"
            )
        rest = iter(lines)
        return {split: [next(rest) for _ in range(count)] for split, count in counts.items()}


@dataclass(frozen=True)
class Encoder:
    """Makes the scenes of a split in latents; it travels to other processes."""

    codec: Codec
    dtype: str
    folder: str
    split: str
    text: Path | None
    captions: Sequence[str] | None

    def make(self, place: int) -> Scene | str:
        """Scene `place`: latents, what of them exists and is valid, cameras in their pixels, its caption's features."""
        scenes = opened(self.folder, self.split)
        if place >= len(scenes):
            return "beyond the end"  # of the last part
        views, times = scenes.shape(place)[:2]
        scene = scenes.read(place, Cut(np.arange(views), np.arange(times)))
        codec, more = self.codec, {"scene": lambda: scene.more.get("scene", "{}")}
        latents = encoder_of(codec)(scene.frames)
        if not np.isfinite(latents.astype(self.dtype)).all():
            raise UserError(
                f"{self.folder}, grid {place} of {self.split}: its latents are not finite; take --dtype float32"
            )
        text = None
        if self.text is not None:
            texts = texts_of(self.text)
            text, more[EMPTY] = texts.features[texts.find(self.captions[place])], lambda: texts.empty
        return Scene(
            latents.astype(self.dtype),
            exists=None if scene.exists is None else codec.all_of(scene.exists),
            valid=None if scene.valid is None else codec.all_of(scene.valid),
            cameras=scene.cameras and reduced_cameras(scene.cameras, codec.factors[1]),
            text=text,
            more=Deferred(more),
        )


@functools.cache
def opened(folder: str, split: str) -> Scenes:
    """The scenes of a split, open once a process."""
    return Records(folder).open(split)


@functools.cache
def encoder_of(codec: Codec) -> Callable[[np.ndarray], np.ndarray]:
    """From the frames of a scene to its latents, on all devices of this process; made once a process."""
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from fourreal.parallel.mesh import MeshConfig, make_mesh

    mesh, encode = make_mesh(MeshConfig(), jax.local_devices()), jax.jit(codec.encode)
    parameters = jax.device_put(codec.parameters(), NamedSharding(mesh, P()))

    def run(frames: np.ndarray) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(encode(parameters, frames[None])[0])

    return run


@functools.cache
def texts_of(file: Path) -> Texts:
    """The prompts and their features, open once a process."""
    return read_texts(file)


def _hash(*files: Path) -> str:
    """SHA-256 of the files' own, in hex."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def splits_of(folder: Path) -> list[str]:
    """The splits of a data set, in the order of their captions."""
    info_file(folder)
    found = [split for split in SPLITS if (folder / f"scenes-{split}.jsonl").is_file()]
    if not found:
        raise UserError(f"{folder} lists no scenes: render it again, its format is an old one")
    return found


@dataclass(frozen=True)
class Captions:
    """Write a caption for each scene of a rendered data set, from the names of what it shows."""

    dataset: tyro.conf.Positional[Path]
    """folder of the data set"""
    out: Path = Path("captions.txt")
    """file to write: a line for each scene, training split first, then validation, then test"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace an existing file"""

    def run(self) -> None:
        """Writes the file. Raises FileInTheWay where it exists."""
        if self.out.exists() and not self.overwrite:
            raise FileInTheWay(f"{self.out} exists already: name another --out or pass --overwrite")
        lines = []
        for split in splits_of(self.dataset):
            scenes = Records(str(self.dataset)).open(split)
            lines += [caption(sorted(scenes.units(place))) for place in range(len(scenes))]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.out, "\n".join(lines) + "\n")
        print(f"{self.out}: {len(lines)} captions, {len(set(lines))} different ones")


def caption(units: Sequence[str]) -> str:
    """What a rendered scene shows, in words: `A guard and a worker move on open ground.`"""
    names = [" ".join(unit.replace("_", " ").replace("/", " ").split()) for unit in units]
    if not names:
        return "Open ground under a clear sky."
    subject = " and ".join(f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}" for name in names)
    return f"{subject[0].upper()}{subject[1:]} move{'s' * (len(names) == 1)} on open ground."
