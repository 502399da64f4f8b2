"""Pictures as files and in the size of a model: decoding, RGB, cropping and scaling, and what that does to intrinsics.

Colours become those of sRGB, where a file has an ICC profile. Transparent parts become white. 16-bit pictures are scaled to 8
bits; floating-point ones hold 0 to 1, black to white.
"""

import contextlib
import io
import zlib
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

Crop = Literal["center", "pad"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # other formats of Pillow start programs (EPS)


def count_pictures(path: Path) -> int:
    """How many pictures a file holds: several if it is animated."""
    with _open(path) as picture:
        # A phone's MPO holds a second eye or a depth map behind the picture.
        return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


def picture_times(path: Path, count: int) -> tuple[float, ...] | None:
    """When each of several pictures is shown, in seconds; None if the file does not tell."""
    with _open(path) as picture:
        durations = []
        for index in range(count):
            picture.seek(index)
            if picture.format == "WEBP":
                picture.load()  # only then is its duration known
            durations.append(float(picture.info.get("duration", 0)) / 1000)
    return tuple(accumulate(durations[:-1], initial=0.0)) if min(durations) > 0 else None


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a file's first picture, upright, from its header."""
    with _open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (width, height) if turned else (height, width)


def decode_pictures(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, picture) of the wanted pictures of a file, upright and in sRGB."""
    with _open(path) as picture:
        for index in sorted(wanted):
            picture.seek(index)
            yield index, in_srgb(ImageOps.exif_transpose(picture))


def fit(picture: Image.Image, size: tuple[int, int], crop: Crop) -> Image.Image:
    """An RGB picture of `size` (height, width), aspect ratio kept: `center` cuts the excess, `pad` adds black bars."""
    height, width = size
    if picture.mode != "RGB":
        picture = as_rgb(picture)
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


def cut_away(old: tuple[int, int], new: tuple[int, int], crop: Crop) -> str:
    """What `fit` cuts of pictures of `old` (height, width), in words; "" up to a tenth of a side."""
    scale = min(old[0] / new[0], old[1] / new[1])
    shares = {"height": 1 - new[0] * scale / old[0], "width": 1 - new[1] * scale / old[1]}
    side, share = max(shares.items(), key=lambda item: item[1])
    return f"{share:.0%} of the {side}" if crop == "center" and share > 0.1 else ""


def in_srgb(picture: Image.Image) -> Image.Image:
    """The colours of a picture with an ICC profile, as a phone's in Display P3, in sRGB; a damaged profile counts as none."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return picture
    with contextlib.suppress(ImageCms.PyCMSError, OSError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if not (source.profile.profile_description or "").startswith("sRGB"):
            colours = picture.convert("RGB") if picture.mode == "RGBA" else picture
            changed = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if picture.mode == "RGBA":
                changed.putalpha(picture.getchannel("A"))
            return changed
    return picture


def on_white(picture: Image.Image) -> Image.Image:
    """An RGB picture, whose transparent parts are white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            if file.read(4) not in (b"II*\0", b"MM\0*"):
                raise
        return _float_tiff(path)


def _float_tiff(path: Path) -> Image.Image:
    """A TIFF of 16-bit floats or in colours of 32-bit ones, which Pillow does not read. Raises ValueError for other kinds."""
    with path.open("rb") as file:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        width, height, channels = (int(tags.get(tag, 1)) for tag in (256, 257, 277))
        bits, packing = set(tags.get(258, ())), tags.get(259, 1)
        plain = tags.get(284, 1) == tags.get(317, 1) == 1 and set(tags.get(339, ())) == {
            3
        }  # interleaved, no differences
        if not plain or packing not in (1, 8, 32946) or channels not in (1, 3) or bits not in ({16}, {32}):
            raise ValueError("a TIFF of a rare kind; save it with 8 or 16 bits a channel, or as PNG")
        if width * height > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{width} x {height} pixels are too many")
        dtype = np.dtype(f"{'<' if tags.prefix == b'II' else '>'}f{bits.pop() // 8}")
        needed, data = width * height * channels * dtype.itemsize, b""
        for offset, size in zip(tags[273], tags[279], strict=True):
            file.seek(offset)
            strip, left = file.read(size), max(1, needed - len(data))
            data += strip if packing == 1 else zlib.decompressobj().decompress(strip, left)
    values = np.frombuffer(data, dtype, width * height * channels).astype(np.float32)
    return _from_unit(values.reshape((height, width, channels) if channels > 1 else (height, width)))


def _from_unit(values: Float[np.ndarray, "h w *c"]) -> Image.Image:
    """RGB of values from 0 to 1. Raises ValueError for others, beyond a hundredth that scaling may overshoot."""
    lowest, highest = values.min(), values.max()
    if not (lowest >= -0.01 and highest <= 1.01):
        raise ValueError(
            f"its numbers are {lowest:g} to {highest:g}; floats must be 0 (black) to 1 (white), integers 16-bit"
        )
    return Image.fromarray(np.rint(255 * values.clip(0, 1)).astype(np.uint8)).convert("RGB")


def as_rgb(picture: Image.Image) -> Image.Image:
    """RGB of a picture of any mode. Raises ValueError for numbers out of range."""
    if picture.mode.startswith("I"):
        return _from_unit(np.asarray(picture) / np.float32(2**16 - 1))
    if picture.mode == "F":
        return _from_unit(np.asarray(picture))
    return on_white(picture)
