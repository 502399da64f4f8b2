"""A safetensors file written part by part, so that no more than a part is in memory.

The format: eight bytes, the length of a header in JSON; the header, `{name: {dtype, shape, data_offsets}}`; then the numbers of
all tensors, row by row, each where its offsets say.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from fourreal.errors import UserError

MOST_HEADER = 100_000_000  # bytes, of a header that safetensors reads
CODES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}


class Streamed(NamedTuple):
    """A tensor to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterable[np.ndarray]]
    """what it is made of, in the order of its first axis"""


def write_streamed(path: Path, tensors: dict[str, Streamed], metadata: dict[str, str] | None = None) -> None:
    """Writes one file, which appears complete or not at all. Raises OSError where that fails, and what `parts` raise."""
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        start, end = end, end + int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
        header[name] = {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight bytes
    if len(text) > MOST_HEADER:
        raise UserError(
            f"{path}: {len(tensors)} tensors need a header of {len(text)} bytes, above {MOST_HEADER}: write several files"
        )
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors.items():
                for part in tensor.parts():
                    file.write(np.ascontiguousarray(part, tensor.dtype).reshape(-1).view(np.uint8))
                if file.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                    raise ValueError(f"{name}: its parts are not {tensor.shape}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
