"""Arrays in npz files that may be damaged or hostile: sizes are checked before anything is allocated, nothing is unpickled."""

import math
import zipfile
from pathlib import Path

import numpy as np

from fourreal.errors import UserError

MAX_BYTES = 2**32  # of one array: a thousand frames of 1024 x 1024 are 3 * 2**30


def read_array(path: Path, name: str) -> np.ndarray | None:
    """An array of an npz, None where it is missing. Raises ValueError if its size is not the stored one or above MAX_BYTES."""
    if read_header(path, name) is None:
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def count_frames(path: Path) -> int:
    """The number of `frames` in an npz, from their header alone. Raises UserError if they are not uint8 [f, h, w, 3]."""
    header = read_header(path, "frames")
    if header is None:
        raise UserError(f"{path}: no array `frames` in it; expected uint8 [f, h, w, 3]")
    shape, dtype = header
    if len(shape) == 5:
        raise UserError(f"{path}: `frames` is a whole grid {list(shape)}, not a video; use --grid {path}")
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or min(shape) < 1:
        raise UserError(f"{path}: `frames` is {dtype} {list(shape)}; expected uint8 [f, h, w, 3]")
    return shape[0]


def read_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and type of an array in an npz, None where it is missing, checked against the bytes stored behind them."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        with archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            stored = archive.getinfo(f"{name}.npy").file_size - file.tell()
    needed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (needed != stored or needed > MAX_BYTES):
        raise ValueError(f"`{name}` claims {needed} bytes and holds {stored}, of at most {MAX_BYTES}")
    return shape, dtype
