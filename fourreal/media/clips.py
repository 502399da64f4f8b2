"""Clips: anything a user has that holds frames in an order, as uint8 frames of the model's size.

A `Clip` is a source of frames that has been looked at but not decoded: its frames are counted and timed first, and only the
chosen ones are sought, decoded and resized, one at a time. Where a clip tells when its frames are shown, they are chosen by
that time, so that a variable frame rate changes nothing; where it does not, each lasts equally long. A clip is a video (any
container that FFmpeg reads), an animated picture (gif, webp, apng), a single picture, a folder or a glob of pictures in
natural order, or an npz with `frames` uint8 [f, h, w, 3].
"""

import glob
import math
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

NEAR = 1e-6  # seconds that rounding may move a moment
EXPECTED = "expected a video, a gif, an npz, a picture, or a folder or glob of pictures"


@dataclass(frozen=True)
class Clip:
    """Frames that are counted but not decoded. `files` holds the pictures of a folder or glob, in order.

    `times`: when each frame is shown, in seconds from the first, None where it is not known.
    """

    path: str
    kind: Literal["video", "picture", "pictures", "npz"]
    count: int
    files: tuple[Path, ...] = ()
    times: tuple[float, ...] | None = None
    video: videos.Video | None = None

    @property
    def moments(self) -> np.ndarray:
        """`times`, or numbers of frames."""
        return np.arange(self.count, dtype=float) if self.times is None else np.array(self.times)

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
            count = pictures.count_pictures(source)
            return Clip(path, "picture", count, times=pictures.picture_times(source, count) if count > 1 else None)
        video = videos.open_video(source)
        if video is None:
            raise UserError(f"{path}: no frames of a video in it; {EXPECTED}")
        return Clip(path, "video", video.count, times=video.times, video=video)


def choose_frames(clip: Clip, wanted: int, frames: str | None = None) -> list[int]:
    """Indices of the `wanted` frames of a clip: all, or spread evenly in time with the first and the last among them.

    `frames` overrides that for a clip longer than wanted: `a:b` spreads evenly over frames a to b - 1, `a:b:step` takes every
    step-th frame from a on, the first `wanted` of them; in seconds from the first frame, `2s:4.5s` spreads over what is shown
    from 2 to before 4.5, `2s:4.5s:0.5s` takes what is shown each half second. Raises UserError if there are too few.
    """
    moments = _choose_moments(clip, wanted, frames)
    return list(range(wanted)) if clip.count == wanted else _nearest(clip, moments)


def choose_together(clips: Sequence[Clip], wanted: int, frames: str | None = None) -> tuple[list[list[int]], str]:
    """Indices of the frames of clips that began together, of `wanted` equal moments, and a line where they had to be aligned.

    Clips of other lengths or rates than the first are cut to the time that all show; `frames` counts the first's. Those that
    tell no times go with those that do only if they hold as many frames as wanted. Raises UserError as `choose_frames`.
    """
    timed = [clip for clip in clips if clip.times is not None]
    if 0 < len(timed) < len(clips):
        for clip in clips:
            if clip.times is None and clip.count != wanted:
                raise UserError(
                    f"{clip.path} does not tell when its frames are shown and {timed[0].path} does, so they cannot be "
                    f"aligned; expected videos, or {wanted} pictures, one a time of the grid"
                )
        chosen, line = choose_together(timed, wanted, frames)
        return [list(range(wanted)) if clip.times is None else chosen.pop(0) for clip in clips], line
    first, *others = clips
    half_frame = first.moments[-1] / max(1, first.count - 1) / 2
    if all(clip.count == first.count and np.abs(clip.moments - first.moments).max() <= half_frame for clip in others):
        return [choose_frames(first, wanted, frames) for _ in clips], ""
    end = min(clip.moments[-1] for clip in clips)
    for clip in sorted(clips, key=lambda clip: clip.moments[-1]):
        _check_enough(clip, int((clip.moments <= end + NEAR).sum()), wanted, "the others end before that")
    moments = _choose_moments(first, wanted, frames, end)
    unit = " s" if first.times else " frames"
    ends = ", ".join(f"{clip.name} {clip.moments[-1]:.6g}{unit}" for clip in clips)
    line = f"aligned by time, from the first frame of each to {end:.6g}{unit} after it (they end at: {ends})"
    return [_nearest(clip, moments) for clip in clips], line


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
    with _one_line(clip.path):
        found = {
            index: np.asarray(pictures.fit(change(index, picture), size, crop))
            for index, picture in original_frames(clip, indices)
        }
    return np.stack([found[index] for index in indices])


def original_frames(clip: Clip, indices: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, picture) of these frames in their own size and mode, in any order. Raises UserError if one is damaged."""
    missing = set(indices)
    with _one_line(clip.path):
        for index, picture in _decode(clip, set(indices)):
            yield index, picture
            missing.discard(index)
            if not missing:
                return
    raise UserError(
        f"{clip.path}: truncated or damaged, frame {min(missing)} of {clip.count} does not decode; "
        "repair it or choose a good part with --frames a:b"
    )


def frame_sizes(clip: Clip, indices: Sequence[int]) -> set[tuple[int, int]]:
    """The sizes (height, width) in which the chosen frames are shown. Raises UserError if one cannot be read."""
    with _one_line(clip.path):
        match clip.kind:
            case "video":
                return {clip.video.size}
            case "npz":
                return {npz.read_header(clip.source, "frames")[0][1:3]}
            case "picture":
                return {pictures.picture_size(clip.source)}
            case "pictures":
                return {pictures.picture_size(clip.files[index]) for index in set(indices)}


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
            yield from videos.decode_frames(clip.source, clip.video, wanted)
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


def _choose_moments(clip: Clip, wanted: int, frames: str | None, end: float = math.inf) -> np.ndarray:
    """The moments of `choose_frames`, none after `end`."""
    moments = clip.moments[clip.moments <= end + NEAR]
    override, seconds = (slice(None), False) if frames is None else _parse_range(frames)
    if seconds and clip.times is None:
        raise UserError(f"--frames {frames}: {clip.path} does not tell its times; give numbers of frames, as 0:60")
    if seconds and clip.count > wanted:
        start, stop = (
            value if value is None or value >= 0 else moments[-1] + value for value in (override.start, override.stop)
        )
        start, stop = max(0.0, start or 0.0), math.inf if stop is None else stop
        pool = moments[(moments >= start - NEAR) & (moments < stop - NEAR)]
        if override.step and len(pool):
            pool = start + override.step * np.arange(int((pool[-1] - start) / override.step + NEAR) + 1)
    else:
        pool = moments[override] if clip.count > wanted else moments
    _check_enough(clip, len(pool), wanted, f"--frames {frames} leaves {len(pool)}" if len(pool) < len(moments) else "")
    return pool[:wanted] if override.step else np.linspace(pool[0], pool[-1], wanted)


def _check_enough(clip: Clip, count: int, wanted: int, why: str) -> None:
    if count < wanted:
        left = f", and {why}" if why and count < clip.count else ""
        raise UserError(
            f"{clip.path}: {clip.count} frame{'' if clip.count == 1 else 's'}{left}, but {wanted} are needed; "
            "give a longer one, or single pictures at their own cells (--given PICTURE@v=0,t=0)"
        )


def _nearest(clip: Clip, moments: np.ndarray) -> list[int]:
    """The frame nearest to each moment; of two equally near ones, the earlier."""
    times = clip.moments
    after = np.searchsorted(times, moments).clip(0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(moments - times[before] <= times[after] - moments + NEAR, before, after).tolist()


def _parse_range(text: str) -> tuple[slice, bool]:
    """The range, and whether it is in seconds."""
    if re.fullmatch(r"-?\d*:(-?\d*)(:[1-9]\d*)?", text):
        return slice(*(int(part) if part else None for part in text.split(":"))), False
    number = r"\d{1,9}(\.\d{1,9})?s"
    if re.fullmatch(rf"(-?{number})?:(-?{number})?(:{number})?", text):
        seconds = slice(*(float(part[:-1]) if part else None for part in text.split(":")))
        if seconds.step != 0:
            return seconds, True
    raise UserError(
        f"--frames {text}: expected a:b or a:b:step, as in 0:60:4 or in seconds 2s:4.5s:0.5s (b is left out)"
    )


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
