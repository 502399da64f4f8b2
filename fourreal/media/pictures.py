"""Pictures as files and in the size of a model: decoding, RGB, cropping and scaling, and what that does to intrinsics."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

Crop = Literal["center", "pad"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # other formats of Pillow start programs (EPS)


def count_pictures(path: Path) -> int:
    """How many pictures a file holds: several if it is animated."""
    with Image.open(path, formats=FORMATS) as picture:
        # A phone's MPO holds a second eye or a depth map behind the picture.
        return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


def decode_pictures(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, picture) of the wanted pictures of a file, upright."""
    with Image.open(path, formats=FORMATS) as picture:
        for index in sorted(wanted):
            picture.seek(index)
            yield index, ImageOps.exif_transpose(picture)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture file, upright, from its header."""
    with Image.open(path, formats=FORMATS) as picture:
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return picture.size if turned else picture.size[::-1]


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


def _as_rgb(picture: Image.Image) -> Image.Image:
    """RGB; transparent parts become white, 16-bit grey loses its low byte."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
