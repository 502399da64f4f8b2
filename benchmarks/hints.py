"""What hints that move cost a grid in the input process: all of it, and optical flow alone.

    python benchmarks/hints.py

View 0 and time 0 are given; the pictures are smooth noise that shifts with views and times. CPU time of one thread, in ms, the
median of several grids. Compare with the seconds that a training step spends on a grid: if flow were most of it, storing flow
with a data set would pay.
"""

import argparse
import time

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from fourreal.motion.moved import WORKING, moved_frames
from fourreal.motion.optical_flow import flow


def shifted(side: int, size: int) -> np.ndarray:
    """A grid of `side` views and times that sees a smooth texture from ever other places."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(2 * size, 2 * size, 3)), (2, 2, 0)) * 500 + 128
    texture = texture.clip(0, 255).astype(np.uint8)
    return np.array([[texture[t : t + size, 2 * v : 2 * v + size] for t in range(side)] for v in range(side)])


def milliseconds(work, repeats: int) -> float:
    """CPU time of a call, the median."""
    taken = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        taken.append(1e3 * (time.thread_time() - began))
    return float(np.median(taken))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    cv2.setNumThreads(1)
    print("| grid | pixels | moved at | flows | flow, ms | all, ms |\n|---|---|---|---|---|---|")
    for side in (4, 8):
        for size in (32, 64, 128):
            frames = shifted(side, size)
            given = np.zeros((side, side), bool)
            given[0], given[:, 0] = True, True
            work = max(size, WORKING)
            pair = [cv2.resize(frame, (work, work)) for frame in (frames[0, 0], frames[0, 1])]
            flows = 4 * (side - 1)
            alone = flows * milliseconds(lambda pair=pair: flow(*pair), 4 * repeats)
            whole = milliseconds(lambda frames=frames, given=given: moved_frames(frames, given), repeats)
            print(f"| {side} x {side} | {size} | {work} | {flows} | {alone:.0f} | {whole:.0f} |")


if __name__ == "__main__":
    main()
