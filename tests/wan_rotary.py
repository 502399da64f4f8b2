"""Wan's rotary embedding written out number by number, as complex numbers: what tests of ours compare with."""

import cmath

import numpy as np


def angle(frame: int, y: int, x: int, pair: int, head_size: int) -> float:
    """Wan's angle of one pair of numbers of a head: the first pairs turn with time, then y, then x."""
    space = 2 * (head_size // 6)
    time = head_size - 2 * space
    for position, size in ((frame, time), (y, space), (x, space)):
        if pair < size // 2:
            return position / 10000 ** (2 * pair / size)
        pair -= size // 2
    raise AssertionError


def turn(x: np.ndarray, width: int) -> np.ndarray:
    """Rotates [f, s, h, e] of frames `width` patches wide: neighbours are real and imaginary parts."""
    out = np.empty_like(x)
    for frame in range(len(x)):
        for s in range(x.shape[1]):
            for h in range(x.shape[2]):
                for pair in range(x.shape[3] // 2):
                    turned = complex(*x[frame, s, h, 2 * pair : 2 * pair + 2]) * cmath.exp(
                        1j * angle(frame, *divmod(s, width), pair, x.shape[3])
                    )
                    out[frame, s, h, 2 * pair : 2 * pair + 2] = turned.real, turned.imag
    return out
