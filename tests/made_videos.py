"""Videos and animated pictures whose right reading is known: flat colours, marks, and frames that tell their own number."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

KR_KB = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}  # BT.601 and BT.709, in their own texts


def yuv_of(rgb: tuple[int, int, int], matrix: str, full: bool = False) -> np.ndarray:
    """Y, Cb, Cr of a colour in 8 bits, by the formulas of the recommendation."""
    kr, kb = KR_KB[matrix]
    r, g, b = np.array(rgb) / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    scaled = (255 * y, 255 * cb + 128, 255 * cr + 128) if full else (219 * y + 16, 224 * cb + 128, 224 * cr + 128)
    return np.rint(scaled).astype(np.uint8)


def rgb_of(yuv: np.ndarray, matrix: str) -> np.ndarray:
    """The colour of Y, Cb, Cr in limited range."""
    kr, kb = KR_KB[matrix]
    y, cb, cr = (yuv[0] - 16) / 219, (yuv[1] - 128.0) / 224, (yuv[2] - 128.0) / 224
    r, b = y + (2 - 2 * kr) * cr, y + (2 - 2 * kb) * cb
    return 255 * np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b])


def write(
    path: Path,
    frames: np.ndarray,
    form: str = "rgb24",
    *,
    codec: str = "libx264",
    stored: str = "yuv444p",
    times: list[int] | None = None,
    rate: int | Fraction = 30,
    aspect: Fraction | None = None,
    matrix: tuple[int, ...] | None = None,
    options: dict[str, str] | None = None,
    **tags: int,
) -> str:
    """Frames [f h w c] ([f c h w] in yuv444p) in `form`, kept as `stored`, shown at `times` in ms, else at a rate."""
    options = {"qp": "0"} if options is None and codec == "libx264" else options or {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[2:4] if form == "yuv444p" else frames.shape[1:3]
        stream.pix_fmt = stored
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for n, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=form)
            if tags.get("color_range"):
                frame.color_range = tags["color_range"]
            if times is not None:
                frame.pts, frame.time_base = times[n], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def flat(rgb: tuple[int, int, int], matrix: str, size: tuple[int, int], full: bool = False) -> np.ndarray:
    """Two frames of one colour in yuv444p."""
    return np.broadcast_to(yuv_of(rgb, matrix, full)[None, :, None, None], (2, 3, *size))


def numbered(count: int, size: tuple[int, int] = (32, 48), step: int = 5) -> np.ndarray:
    """Frames of grey levels `step` apart, so that each tells its number."""
    return np.broadcast_to((step * np.arange(count))[:, None, None, None], (count, *size, 3)).astype(np.uint8)


def numbers(frames: np.ndarray, step: int = 5) -> list[int]:
    return [round(float(frame.mean()) / step) for frame in frames]
