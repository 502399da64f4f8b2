"""Videos and pictures in and out: anything a user has becomes uint8 frames of the model's size, and back.

A `Clip` is a source of frames that has been looked at but not decoded: its frames are counted first, and only the
chosen ones are decoded and resized, one at a time. A clip is a video (any container that FFmpeg reads), an animated
picture (gif, webp, apng), a single picture, a folder or a glob of pictures in natural order, or an npz with `frames`
uint8 [f, h, w, 3].
"""

import glob
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

Crop = Literal["center", "pad"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
EXPECTED = "expected a video, a gif, an npz, a picture, or a folder or glob of pictures"
# What may be opened. Other formats of FFmpeg and Pillow open further files (playlists) or start programs (EPS).
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,yuv4mpegpipe,gif,apng,flv,asf,ogg,ivf,nut,mjpeg,h264,hevc"
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_BYTES = 2**32  # of one array in an npz: a thousand frames of 1024 x 1024 are 3 * 2**30


class MediaError(ValueError):
    """A file that cannot be used, in one line: which one, what is wrong, what was expected."""


@dataclass(frozen=True)
class Clip:
    """Frames that are counted but not decoded. `files` holds the pictures of a folder or glob, in order."""

    path: str
    kind: Literal["video", "picture", "pictures", "npz"]
    count: int
    files: tuple[Path, ...] = ()

    @property
    def source(self) -> Path:
        return Path(os.path.expanduser(self.path))

    @property
    def name(self) -> str:
        return Path(self.path).name or self.path


def open_clip(path: str) -> Clip:
    """Finds out what `path` is and counts its frames. FileNotFoundError, or MediaError if it cannot be read."""
    source = Path(os.path.expanduser(path))
    if source.is_dir():
        return _open_pictures(path, [file for file in source.iterdir() if file.suffix.lower() in PICTURES])
    if not source.exists():
        if not glob.has_magic(path):
            raise FileNotFoundError(f"{path}: there is no such file or folder")
        return _open_pictures(path, [Path(match) for match in glob.glob(str(source), recursive=True)])
    if source.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty; {EXPECTED}")
    with _one_line(path):
        if source.suffix.lower() == ".npz":
            return Clip(path, "npz", _npz_frames(source, path))
        if source.suffix.lower() in PICTURES:
            with Image.open(source, formats=PICTURE_FORMATS) as picture:
                # A phone's MPO holds a second eye or a depth map behind the picture.
                return Clip(path, "picture", 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1))
        return Clip(path, "video", _count_video(source, path))


def choose_frames(clip: Clip, wanted: int, frames: str | None = None) -> list[int]:
    """Indices of the `wanted` frames of a clip: all, or spread evenly with the first and the last among them.

    `frames` overrides that for a clip longer than wanted: `a:b` spreads evenly over that range, `a:b:step` takes every
    step-th frame from a on, the first `wanted` of them. ValueError if there are too few.
    """
    override = slice(None) if frames is None else _parse_range(frames)
    longer = clip.count > wanted
    pool = range(clip.count)[override] if longer else range(clip.count)
    if len(pool) < wanted:
        chosen = "" if len(pool) == clip.count else f", and --frames {frames} leaves {len(pool)}"
        plural = "" if clip.count == 1 else "s"
        raise ValueError(
            f"{clip.path}: {clip.count} frame{plural}{chosen}, but {wanted} are needed; "
            "give a longer one, or single pictures at their own cells (--given PICTURE@v=0,t=0)"
        )
    if longer and override.step:
        return list(pool[:wanted])
    return [pool[round(index)] for index in np.linspace(0, len(pool) - 1, wanted)]


def read_frames(clip: Clip, indices: Sequence[int], size: tuple[int, int], crop: Crop) -> UInt8[np.ndarray, "f h w 3"]:
    """Decodes the chosen frames, each brought to `size` (height, width) as it arrives. MediaError if one is damaged."""
    wanted = set(indices)
    found = {}
    with _one_line(clip.path):
        for index, picture in DECODERS[clip.kind](clip, wanted):
            found[index] = np.asarray(fit(picture, size, crop))
            if len(found) == len(wanted):
                break
    if missing := wanted - found.keys():
        raise MediaError(
            f"{clip.path}: truncated or damaged, frame {min(missing)} of {clip.count} does not decode; "
            "repair it or choose a good part with --frames a:b"
        )
    return np.stack([found[index] for index in indices])


def fit(picture: Image.Image, size: tuple[int, int], crop: Crop) -> Image.Image:
    """An RGB picture of `size` (height, width), aspect ratio kept: `center` cuts the excess, `pad` adds black bars."""
    height, width = size
    if picture.mode != "RGB":
        picture = _as_rgb(picture)
    if picture.size == (width, height):
        return picture
    if crop == "center":
        return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color="black")


def fit_intrinsics(
    K: Float[np.ndarray, "v 3 3"], old: tuple[int, int], new: tuple[int, int], crop: Crop
) -> Float[np.ndarray, "v 3 3"]:
    """K of pictures of `old` (height, width) after `fit`, to half a pixel.

    Pixel (0, 0) covers [0, 1] x [0, 1]: the picture's middle is (w/2, h/2).
    """
    (old_height, old_width), (height, width) = old, new
    scale = (max if crop == "center" else min)(height / old_height, width / old_width)
    moved = K.astype(np.float32)
    moved[:, :2] *= scale
    moved[:, 0, 2] += (width - scale * old_width) / 2
    moved[:, 1, 2] += (height - scale * old_height) / 2
    return moved


def enlarged(frames: UInt8[np.ndarray, "f h w 3"], shorter: int = 256) -> UInt8[np.ndarray, "f h2 w2 3"]:
    """Frames scaled up (bicubic) so that the shorter side is at least `shorter` px; both sides even, as H.264 needs."""
    height, width = frames.shape[1:3]
    scale = max(1.0, shorter / min(height, width))
    size = tuple(2 * round(side * scale / 2 + 0.49) for side in (width, height))
    if size == (width, height):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def write_video(path: Path, frames: UInt8[np.ndarray, "f h w 3"], fps: int) -> None:
    """H.264, yuv420p, CRF 18, no audio. Both sides must be even. The file appears whole or not at all."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 needs even sides, not {width}x{height}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts frame2.png before frame10.png."""
    parts = re.split(r"(\d+)", str(path))
    # of two numbers without leading zeros the one with fewer digits is smaller
    keys = ((part.lstrip("0") or "0" if part.isdecimal() else part.lower(), part) for part in parts if part)
    return [(0, len(key), key) if part.isdecimal() else (1, 0, key) for key, part in keys]


def _open_pictures(path: str, files: list[Path]) -> Clip:
    files = sorted((file for file in files if not file.name.startswith(".")), key=natural_order)
    if not files:
        raise FileNotFoundError(f"{path}: no pictures there; expected {', '.join(PICTURES)} files")
    if odd := next((file for file in files if file.suffix.lower() not in PICTURES or not file.is_file()), None):
        raise MediaError(f"{path}: {odd.name} is no picture; a folder or glob must hold pictures only ({EXPECTED})")
    return Clip(path, "pictures", len(files), tuple(files))


def _count_video(path: Path, shown: str) -> int:
    """Frames by counting packets, which decodes nothing; a container that promises more than it holds is truncated."""
    with _open_video(path) as container:
        if not container.streams.video or container.format.name == "tty":  # FFmpeg renders text files as video
            raise MediaError(f"{shown}: no video in it; {EXPECTED}")
        stream = container.streams.video[0]
        packets = [packet.is_discard for packet in container.demux(stream) if packet.size]
        promised = stream.frames
    if promised > len(packets):
        raise ValueError(f"{shown}: truncated, it promises {promised} frames and holds {len(packets)}; fetch it again")
    if not packets:
        raise MediaError(f"{shown}: it holds no frames; {EXPECTED}")
    return packets.count(False)


def _open_video(path: Path) -> av.container.InputContainer:
    return av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS})


def _decode_video(clip: Clip, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """Upright as the phone held it; frames that are not wanted are decoded but not converted."""
    with _open_video(clip.source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                yield index, frame.to_image().rotate(frame.rotation, expand=True)


def _decode_picture(clip: Clip, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    with Image.open(clip.source, formats=PICTURE_FORMATS) as picture:
        for index in sorted(wanted):
            picture.seek(index)
            yield index, ImageOps.exif_transpose(picture)


def _decode_pictures(clip: Clip, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    for index in sorted(wanted):
        with _one_line(str(clip.files[index])), Image.open(clip.files[index], formats=PICTURE_FORMATS) as picture:
            yield index, ImageOps.exif_transpose(picture)


def _decode_npz(clip: Clip, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    frames = read_array(clip.source, "frames")
    for index in wanted:
        yield index, Image.fromarray(frames[index])


DECODERS: dict[str, Callable[[Clip, set[int]], Iterator[tuple[int, Image.Image]]]] = {
    "video": _decode_video,
    "picture": _decode_picture,
    "pictures": _decode_pictures,
    "npz": _decode_npz,
}


def _as_rgb(picture: Image.Image) -> Image.Image:
    """RGB; transparent parts become white, 16-bit grey loses its low byte."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def read_array(path: Path, name: str) -> np.ndarray | None:
    """An array of an npz, or None; ValueError if it is larger than its file or than MOST_BYTES. Never unpickles."""
    if _array_header(path, name) is None:
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def _array_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and type of an array in an npz, None where it is missing, checked against what is stored behind them."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        with archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            stored = archive.getinfo(f"{name}.npy").file_size - file.tell()
    needed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (needed != stored or needed > MOST_BYTES):
        raise ValueError(f"`{name}` claims {needed} bytes and holds {stored}, of at most {MOST_BYTES}")
    return shape, dtype


def _npz_frames(path: Path, shown: str) -> int:
    """The number of `frames`, from their header alone."""
    header = _array_header(path, "frames")
    if header is None:
        raise MediaError(f"{shown}: no array `frames` in it; expected uint8 [f, h, w, 3]")
    shape, dtype = header
    if len(shape) == 5:
        raise MediaError(f"{shown}: `frames` is a whole grid {list(shape)}, not a video; use --grid {shown}")
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or min(shape) < 1:
        raise MediaError(f"{shown}: `frames` is {dtype} {list(shape)}; expected uint8 [f, h, w, 3]")
    return shape[0]


def _parse_range(text: str) -> slice:
    if not re.fullmatch(r"-?\d*:(-?\d*)(:[1-9]\d*)?", text):
        raise ValueError(f"--frames {text}: expected a:b or a:b:step, as in 0:60:4 (b is left out)")
    return slice(*(int(part) if part else None for part in text.split(":")))


@contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Any fault of a file as one line that names it. Damaged ones make decoders raise anything, after warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        if isinstance(error, MediaError):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(f"{path}: cannot be read ({reason}); {EXPECTED}") from error
