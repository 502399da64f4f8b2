"""Clips: anything a user has that holds frames in an order, as uint8 frames of the model's size.

A `Clip` is a source of frames that has been looked at but not decoded: its frames are counted first, and only the
chosen ones are decoded and resized, one at a time. A clip is a video (any container that FFmpeg reads), an animated
picture (gif, webp, apng), a single picture, a folder or a glob of pictures in natural order, or an npz with `frames`
uint8 [f, h, w, 3].
"""

import glob
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fourreal.errors import MissingFile, UserError
from fourreal.media import npz, pictures, videos
from fourreal.media.pictures import Crop

EXPECTED = "expected a video, a gif, an npz, a picture, or a folder or glob of pictures"


@dataclass(frozen=True)
class Clip:
    """Frames that are counted but not decoded. `files` holds the pictures of a folder or glob, in order.

    `fps` is a video's mean number of frames a second, None where it is not known.
    """

    path: str
    kind: Literal["video", "picture", "pictures", "npz"]
    count: int
    files: tuple[Path, ...] = ()
    fps: float | None = None

    @property
    def source(self) -> Path:
        return Path(os.path.expanduser(self.path))

    @property
    def name(self) -> str:
        return Path(self.path).name or self.path


def open_clip(path: str) -> Clip:
    """Finds out what `path` is and counts its frames. Raises MissingFile, or UserError if it cannot be read."""
    source = Path(os.path.expanduser(path))
    if source.is_dir():
        return _open_pictures(path, [file for file in source.iterdir() if file.suffix.lower() in pictures.SUFFIXES])
    if not source.exists():
        if not glob.has_magic(path):
            raise MissingFile(f"{path}: there is no such file or folder")
        return _open_pictures(path, [Path(match) for match in glob.glob(str(source), recursive=True)])
    if source.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; {EXPECTED}")
    with _one_line(path):
        if source.suffix.lower() == ".npz":
            return Clip(path, "npz", npz.count_frames(source))
        if source.suffix.lower() in pictures.SUFFIXES:
            return Clip(path, "picture", pictures.count_pictures(source))
        count = videos.count_frames(source)
        if not count:
            raise UserError(f"{path}: no frames of a video in it; {EXPECTED}")
        return Clip(path, "video", count, fps=videos.frame_rate(source))


def choose_frames(clip: Clip, wanted: int, frames: str | None = None) -> list[int]:
    """Indices of the `wanted` frames of a clip: all, or spread evenly with the first and the last among them.

    `frames` overrides that for a clip longer than wanted: `a:b` spreads evenly over that range, `a:b:step` takes every
    step-th frame from a on, the first `wanted` of them. Raises UserError if there are too few.
    """
    override = slice(None) if frames is None else _parse_range(frames)
    longer = clip.count > wanted
    pool = range(clip.count)[override] if longer else range(clip.count)
    if len(pool) < wanted:
        chosen = "" if len(pool) == clip.count else f", and --frames {frames} leaves {len(pool)}"
        plural = "" if clip.count == 1 else "s"
        raise UserError(
            f"{clip.path}: {clip.count} frame{plural}{chosen}, but {wanted} are needed; "
            "give a longer one, or single pictures at their own cells (--given PICTURE@v=0,t=0)"
        )
    if longer and override.step:
        return list(pool[:wanted])
    return [pool[round(index)] for index in np.linspace(0, len(pool) - 1, wanted)]


def read_frames(
    clip: Clip,
    indices: Sequence[int],
    size: tuple[int, int],
    crop: Crop,
    change: Callable[[int, Image.Image], Image.Image] = lambda index, picture: picture,
) -> UInt8[np.ndarray, "f h w 3"]:
    """Decodes the chosen frames, each brought to `size` (height, width) as it arrives. Raises UserError if one is damaged.

    `change` gets a frame's index and whole picture before that, and gives the picture to use.
    """
    wanted = set(indices)
    found = {}
    with _one_line(clip.path):
        for index, picture in _decode(clip, wanted):
            found[index] = np.asarray(pictures.fit(change(index, picture), size, crop))
            if len(found) == len(wanted):
                break
    if missing := wanted - found.keys():
        raise UserError(
            f"{clip.path}: truncated or damaged, frame {min(missing)} of {clip.count} does not decode; "
            "repair it or choose a good part with --frames a:b"
        )
    return np.stack([found[index] for index in indices])


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts frame2.png before frame10.png."""
    parts = re.split(r"(\d+)", str(path))
    # of two numbers without leading zeros the one with fewer digits is smaller
    keys = ((part.lstrip("0") or "0" if part.isdecimal() else part.lower(), part) for part in parts if part)
    return [(0, len(key), key) if part.isdecimal() else (1, 0, key) for key, part in keys]


def _open_pictures(path: str, files: list[Path]) -> Clip:
    files = sorted((file for file in files if not file.name.startswith(".")), key=natural_order)
    if not files:
        raise MissingFile(f"{path}: no pictures there; expected {', '.join(pictures.SUFFIXES)} files")
    for file in files:
        if file.suffix.lower() not in pictures.SUFFIXES or not file.is_file():
            raise UserError(f"{path}: {file.name} is no picture; a folder or glob must hold pictures only ({EXPECTED})")
    return Clip(path, "pictures", len(files), tuple(files))


def _decode(clip: Clip, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, picture) of the wanted frames, in any order."""
    match clip.kind:
        case "video":
            yield from videos.decode_frames(clip.source, wanted)
        case "picture":
            yield from pictures.decode_pictures(clip.source, wanted)
        case "pictures":
            for index in sorted(wanted):
                with _one_line(str(clip.files[index])):
                    ((_, picture),) = pictures.decode_pictures(clip.files[index], [0])
                yield index, picture
        case "npz":
            frames = npz.read_array(clip.source, "frames")
            for index in wanted:
                yield index, Image.fromarray(frames[index])


def _parse_range(text: str) -> slice:
    if not re.fullmatch(r"-?\d*:(-?\d*)(:[1-9]\d*)?", text):
        raise UserError(f"--frames {text}: expected a:b or a:b:step, as in 0:60:4 (b is left out)")
    return slice(*(int(part) if part else None for part in text.split(":")))


@contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Any fault of a file as one line that names it. Damaged ones make decoders raise anything, after warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); {EXPECTED}") from error
