"""Video files, through FFmpeg: counting, decoding and writing frames."""

import os
from collections.abc import Container, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fourreal.errors import UserError

# Formats that may be opened; others of FFmpeg open further files (playlists).
FORMATS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,yuv4mpegpipe,gif,apng,flv,asf,ogg,ivf,nut,mjpeg,h264,hevc"


def count_frames(path: Path) -> int:
    """Frames of a file's first video stream, by its packets, without decoding; 0 if it has none.

    Raises UserError where the container promises more frames than it holds: it is truncated.
    """
    with _open(path) as container:
        if not container.streams.video or container.format.name == "tty":  # FFmpeg renders text files as video
            return 0
        stream = container.streams.video[0]
        packets = [packet.is_discard for packet in container.demux(stream) if packet.size]
        promised = stream.frames
    if promised > len(packets):
        raise UserError(f"{path}: truncated, it promises {promised} frames and holds {len(packets)}; fetch it again")
    return packets.count(False)


def frame_rate(path: Path) -> float | None:
    """Mean frames a second of a file's first video stream, None where the file does not tell."""
    with _open(path) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else None


def decode_frames(path: Path, wanted: Container[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, frame) of the wanted frames, upright as the phone held it; the others are decoded but not converted."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                yield index, frame.to_image().rotate(frame.rotation, expand=True)


def write_video(path: Path, frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> None:
    """H.264, yuv420p, CRF 18, no audio. Both sides must be even. The file appears whole or not at all."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"{path}: H.264 needs even sides, not {width}x{height}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path) -> av.container.InputContainer:
    return av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
