"""Video files, through FFmpeg: which frames they hold and when, decoded as they are to be shown, and written.

A frame is shown as its file says: in its sample aspect ratio, turned and mirrored by its display matrix, in its colour matrix
and range. A file that names no matrix has BT.709's if it is at least 1280 wide or above 576 high, else BT.601's, as players
take it. Transparent parts become white. HLG and PQ are refused, as 8 bits hold them only after tone mapping.
"""

import contextlib
import os
import shlex
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fourreal.errors import UserError
from fourreal.media.pictures import on_white

# Formats that may be opened; others of FFmpeg open further files (playlists).
FORMATS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,yuv4mpegpipe,gif,apng,flv,asf,ogg,ivf,nut,mjpeg,h264,hevc"
BT709, UNSPECIFIED, RESERVED, LIMITED, FULL = 1, 2, 3, 1, 2  # as ITU-T H.273 and FFmpeg number matrices and ranges
MATRICES = (0, BT709, UNSPECIFIED, RESERVED, 4, 5, 6, 7, 9)  # that FFmpeg's scaler converts
HDR = {16: "PQ", 18: "HLG"}
TO_SDR = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)
TURNS = {  # (a, b, c, d) of a display matrix, which moves a pixel from (x, y) to (a x + c y, b x + d y); y is down
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


QUARTER_TURNS = [turn for (a, *_), turn in TURNS.items() if not a]
WIDEST = 10  # times as wide as high, that a pixel may be


@dataclass(frozen=True)
class Video:
    """The frames of a file's video in the order they are shown, known from its packets.

    `times`: seconds from the first; None where the file does not tell. `stamps`, `keys`: when each frame is shown, and those
    where decoding can begin, in the stream's unit; empty where packets carry no times. `size`: (height, width) as shown.
    """

    count: int
    size: tuple[int, int]
    times: tuple[float, ...] | None
    stamps: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()


def open_video(path: Path) -> Video | None:
    """Finds all frames of a file's video, decoding only the first; None if it has none.

    Raises UserError where the container promises more frames than it holds (it is truncated), and for colours that cannot be
    shown in 8 bits.
    """
    with _open(path) as container:
        stream = container.streams.best("video")
        if stream is None or container.format.name == "tty":  # FFmpeg renders text files as video
            return None
        packets = [
            (packet.pts, packet.is_keyframe, packet.is_discard) for packet in container.demux(stream) if packet.size
        ]
        if stream.frames > len(packets):
            raise UserError(
                f"{path}: truncated, it promises {stream.frames} frames and holds {len(packets)}; fetch it again"
            )
        shown = [(stamp, key) for stamp, key, discard in packets if not discard]
        unit, rate = stream.time_base, stream.average_rate
    if not shown:
        return None
    stamps = sorted({stamp for stamp, _ in shown if stamp is not None})
    keys = sorted(stamp for stamp, key, _ in packets if key and stamp is not None)
    size = _first_size(path)
    if len(stamps) < len(shown) or not keys:  # no clock: frames are counted, at the mean rate
        times = tuple(float(n / rate) for n in range(len(shown))) if rate else None
        return Video(len(shown), size, times)
    stamps = [stamp for stamp in stamps if stamp >= keys[0]]  # what comes before cannot be decoded
    times = tuple(float((stamp - stamps[0]) * unit) for stamp in stamps)
    return Video(len(stamps), size, times, tuple(stamps), tuple(keys))


def decode_frames(path: Path, video: Video, wanted: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, frame as it is shown) of the wanted frames, in order; decoding begins at the keyframe before each."""
    with _open(path) as container:
        stream = container.streams.best("video")
        decoder = _decoder(stream)
        if not video.stamps:
            wanted = set(wanted)
            frames = (frame for packet in container.demux(stream) for frame in _decode(decoder, packet))
            yield from ((n, _shown(frame, stream, path)) for n, frame in enumerate(frames) if n in wanted)
            return
        runs = groupby(sorted(wanted), lambda n: video.keys[bisect_right(video.keys, video.stamps[n]) - 1])
        for key, run in runs:
            left = {video.stamps[n]: n for n in run}
            for frame in _decode_from(key, container, stream, decoder, path):
                if frame.pts in left:
                    yield left.pop(frame.pts), _shown(frame, stream, path)
                if not left:
                    break


def write_video(path: Path, frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> None:
    """H.264, yuv420p, BT.709 and tagged so, CRF 18, no audio. Both sides must be even. The file appears whole or not at all."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise UserError(f"{path}: H.264 needs even sides, not {width}x{height}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            tags = stream.codec_context
            tags.colorspace = tags.color_primaries = tags.color_trc = BT709
            tags.color_range = LIMITED
            for frame in frames:
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                yuv = rgb.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
                container.mux(stream.encode(yuv))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path) -> av.container.InputContainer:
    return av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": FORMATS})


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """The stream's decoder; libvpx's where alpha lies beside the frames, which FFmpeg's own decoders drop."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name and stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1":
        return av.CodecContext.create(name, "r")
    stream.thread_type = "AUTO"
    return stream.codec_context


def _decode(decoder: av.VideoCodecContext, packet: av.Packet) -> list[av.VideoFrame]:
    return decoder.decode(packet if packet.size else None)


def _decode_from(key: int, container, stream, decoder, path: Path) -> Iterator[av.VideoFrame]:
    """Frames from the keyframe that is shown at `key` on; where seeking misses it, the file is read from its beginning."""
    decoder.flush_buffers()
    with contextlib.ExitStack() as stack:
        try:
            container.seek(key, stream=stream)
            packets = _packets_from(key, container.demux(stream))
        except (av.FFmpegError, LookupError):
            again = stack.enter_context(_open(path))
            packets = _packets_from(key, again.demux(again.streams.best("video")))
        for packet in packets:
            yield from _decode(decoder, packet)


def _packets_from(key: int, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """The packets from that keyframe on. Raises LookupError if one that is shown later comes first, or none at all."""
    for packet in packets:
        if packet.is_keyframe and packet.pts == key:
            return chain([packet], packets)
        if packet.is_keyframe and packet.pts is not None and packet.pts > key:
            break
    raise LookupError(f"no keyframe at {key}")


def _first_size(path: Path) -> tuple[int, int]:
    """(height, width) as shown. Raises UserError for shapes and colours that cannot be shown."""
    with _open(path) as container:
        stream = container.streams.best("video")
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UserError(f"{path}: damaged, none of its frames can be decoded; fetch it again")
        trc, convert = stream.codec_context.color_trc, f"convert it: ffmpeg -i {shlex.quote(str(path))} -vf"
        if trc in HDR:
            raise UserError(
                f"{path}: HDR video ({HDR[trc]}), which 8 bits do not hold; expected SDR, so {convert} {TO_SDR} sdr.mp4"
            )
        if frame.colorspace not in MATRICES:
            raise UserError(
                f"{path}: colour matrix {frame.colorspace} (ITU-T H.273) is not read; expected BT.601, 709 or 2020, so "
                f"{convert} zscale=m=bt709:p=bt709:t=bt709 bt709.mp4"
            )
        if not 1 / WIDEST <= (aspect := stream.sample_aspect_ratio or 1) <= WIDEST:
            raise UserError(
                f"{path}: pixels {aspect} times as wide as high; expected square ones, so {convert} setsar=1 a.mp4"
            )
        size = frame.height, round(frame.width * aspect)
    return size[::-1] if _turn(frame, path) in QUARTER_TURNS else size


def _shown(frame: av.VideoFrame, stream: av.VideoStream, path: Path) -> Image.Image:
    """A decoded frame as RGB, upright, in square pixels."""
    untagged = frame.colorspace in (UNSPECIFIED, RESERVED) and not frame.format.is_rgb
    large = frame.width >= 1280 or frame.height > 576
    matrix = ("ITU709" if large else "ITU601") if untagged else None
    clear = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    rgb = frame.reformat(format="rgba" if clear else "rgb24", src_colorspace=matrix, dst_color_range=FULL)
    picture = on_white(Image.fromarray(rgb.to_ndarray()))
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    if width != frame.width:
        picture = picture.resize((width, frame.height), Image.Resampling.LANCZOS)
    turn = _turn(frame, path)
    return picture if turn is None else picture.transpose(turn)


def _turn(frame: av.VideoFrame, path: Path) -> Image.Transpose | None:
    """How a frame's display matrix turns or mirrors it. Raises UserError for other angles."""
    data = next((bytes(part) for part in frame.side_data if part.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32, 9) / 2**16
    turn = tuple(round(value / max(abs(a), abs(b), abs(c), abs(d), 1e-9)) for value in (a, b, c, d))
    if turn not in TURNS:
        raise UserError(f"{path}: its display matrix is no turn by 90 degrees; convert it: ffmpeg -i IN turned.mp4")
    return TURNS[turn]
