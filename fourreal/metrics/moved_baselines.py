"""Baselines that move pixels: given frames carried along optical flow to an unknown cell, and mixes with the copies.

A and B are the moved pictures of `motion/moved.py`; where nothing arrives they are the copies, A the freeze-time one and B the
fixed-view one. They stand in for methods that warp and know no depth.
"""

import numpy as np
from jaxtyping import Bool, UInt8

from fourreal.metrics.baselines import copy_fixed_view, copy_freeze_time, nearest_corner
from fourreal.motion.moved import moved_frames

STILL = 12  # levels; a pixel that changes less in both A and the given video stands still


def moved_baselines(
    frames: UInt8[np.ndarray, "v t h w 3"], given: Bool[np.ndarray, "v t"]
) -> dict[str, UInt8[np.ndarray, "v t h w 3"]]:
    """By name: A, B, their mean, the median of both and both copies, and the copy where nothing moves, else the mean of all."""
    copies = copy_freeze_time(frames, given), copy_fixed_view(frames, given)
    moved = [copy.copy() for copy in copies]
    for cell, pictures in moved_frames(frames, given).items():
        for of, picture in zip(moved, pictures, strict=True):
            of[cell] = np.where(picture[..., 3:] > 0, picture[..., :3], of[cell])
    all_four = np.stack([*copies, *moved]).astype(np.float32)
    still = np.zeros((*given.shape, *frames.shape[2:4], 1), bool)
    for v, t in np.argwhere(~given):
        if corner := nearest_corner(given, v, t):
            w, s = corner
            pairs = (frames[w, t], frames[w, s]), (moved[0][v, t], copies[0][v, t])
            still[v, t] = np.all([_change(*pair) < STILL for pair in pairs], axis=0)
    return {
        "moved, of its view": moved[0],
        "moved, of its time": moved[1],
        "mean of both moved": _rounded(all_four[2:].mean(0)),
        "median of copies and moved": _rounded(np.median(all_four, 0)),
        "copy where still, else the mean": np.where(still, copies[0], _rounded(all_four.mean(0))),
    }


def _change(one: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    return np.abs(one.astype(np.int16) - other).max(-1, keepdims=True)


def _rounded(frames: np.ndarray) -> np.ndarray:
    return np.rint(frames).astype(np.uint8)
