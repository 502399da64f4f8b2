"""Seconds and peak memory of choosing and reading 8 frames of a long video, beside decoding all of it.

python benchmarks/inputs.py --minutes 10
python benchmarks/inputs.py --minutes 1 --all

The video is two seconds of H.264, encoded once and repeated with later times; each frame of them has a white square at a place
of its own in a corner, by which the frames that come back are checked.
"""

import argparse
import multiprocessing
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from fourreal.media.clips import choose_frames, open_clip, read_frames

RATE, GROUP, WANTED = 30, 60, 8  # frames a second, from keyframe to keyframe, and chosen


def make_video(path: Path, size: tuple[int, int], minutes: float) -> None:
    """Moving stripes under noise, so that packets are as large as a camera's."""
    height, width = size
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 16, (height, width), dtype=np.uint8)
    packets = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=RATE, options={"preset": "ultrafast", "crf": "26", "g": str(GROUP), "bf": "2"}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stripes = (np.arange(width) // 40 % 2 * 100 + 60).astype(np.uint8)
        for n in tqdm(range(GROUP), desc="encoding", unit="frame"):
            frame = np.empty((height * 3 // 2, width), np.uint8)
            frame[:height] = np.roll(stripes, 4 * n) + np.roll(noise, 7 * n, 0)
            frame[: height // 4, : width // 4] = 20
            down, across = divmod(n, 10)
            cell = height // 24, width // 40
            frame[down * cell[0] : (down + 1) * cell[0], across * cell[1] : (across + 1) * cell[1]] = 230
            frame[height:] = 128
            image = av.VideoFrame.from_ndarray(frame, format="yuv420p")
            image.pts, image.time_base = n, Fraction(1, RATE)
            packets += stream.encode(image)
        packets += stream.encode()
        times = [(packet.pts, packet.dts, bytes(packet), packet.is_keyframe) for packet in packets]
        unit = packets[0].time_base
        for repeat in tqdm(range(round(minutes * 60 * RATE / GROUP)), desc="writing", unit="group"):
            for pts, dts, data, key in times:
                packet, later = av.Packet(data), round(repeat * GROUP / RATE / unit)
                packet.stream, packet.time_base, packet.is_keyframe = stream, unit, key
                packet.pts, packet.dts = pts + later, dts + later
                container.mux(packet)


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def number(frame: np.ndarray) -> int:
    """Where the white square is."""
    height, width = (side / unit for side, unit in zip(frame.shape, (24, 40), strict=False))
    cells = [frame[int((n // 10 + 0.5) * height), int((n % 10 + 0.5) * width)].mean() for n in range(GROUP)]
    return int(np.argmax(cells))


def read(path: str, every: bool) -> None:
    """Prints what it takes to open the video and to read the frames; of a process of its own."""
    before = peak_mib()
    start = time.perf_counter()
    clip = open_clip(path)
    opened = time.perf_counter() - start
    chosen = choose_frames(clip, WANTED)
    if every:
        with av.open(path) as container:
            container.streams.video[0].thread_type = "AUTO"
            frames = [frame.to_image() for n, frame in enumerate(container.decode(video=0)) if n in set(chosen)]
    else:
        frames = read_frames(clip, chosen, (288, 512), "center")
    total = time.perf_counter() - start
    wrong = [n for n, frame in zip(chosen, frames, strict=True) if number(np.asarray(frame)) != n % GROUP]
    print(
        f"{'all decoded' if every else 'sought'}: {clip.count} frames, opened in {opened:.2f} s, {WANTED} frames read in "
        f"{total - opened:.2f} s, peak {peak_mib():.0f} MiB ({before:.0f} before), {len(wrong)} wrong frames"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--size", type=int, nargs=2, default=(2160, 3840), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--all", action="store_true", help="decode every frame as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        make_video(path, tuple(options.size), options.minutes)
        print(
            f"{options.minutes:g} minutes of {options.size[1]}x{options.size[0]}, {path.stat().st_size / 2**20:.1f} MiB"
        )
        for every in (False, True) if options.all else (False,):
            process = multiprocessing.get_context("spawn").Process(target=read, args=(str(path), every))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
