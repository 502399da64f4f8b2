"""What users bring to an evaluation: predictions of other systems, and metrics of their own.

NAME.npz            one grid: frames uint8 [v t h w 3]; NAME is the bundled grid's, or its number in the data set
MODULE:FUNCTION     (frames uint8 [v t h w 3], truth, given bool [v t]) -> number; more is better, or with :lower less
"""

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fourreal.errors import FileInTheWay, MissingFile, UserError
from fourreal.evaluation.evaluate import EvaluationGrid
from fourreal.media.npz import read_array

OwnMetric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def own_metrics(names: Sequence[str]) -> dict[str, OwnMetric]:
    """The functions by name. Raises UserError for a name that is none."""
    found = {}
    for name in names:
        module, _, rest = name.partition(":")
        function, _, better = rest.partition(":")
        if not module or not function or better not in ("", "lower", "higher"):
            raise UserError(f"--metric {name}: give MODULE:FUNCTION, or MODULE:FUNCTION:lower where less is better")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found[name] = _spoken(name, getattr(importlib.import_module(module), function))
        except (ImportError, AttributeError) as error:
            raise UserError(f"--metric {name}: cannot be imported ({error})") from error
    return found


def _spoken(name: str, metric: OwnMetric) -> OwnMetric:
    """The metric, whose failures are one line."""

    def scored(frames: np.ndarray, truth: np.ndarray, given: np.ndarray) -> float:
        try:
            return float(metric(frames, truth, given))
        except Exception as error:
            raise UserError(f"--metric {name} failed: {type(error).__name__}: {error}") from error

    return scored


def predictions_hash(folder: Path) -> str:
    """SHA-256 of the predictions of a folder, in hex. Raises MissingFile where there are none."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise MissingFile(
            f"--predictions {folder}: no NAME.npz in it; write what is given with --inputs to see the names"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def read_prediction(folder: Path, grid: EvaluationGrid) -> UInt8[np.ndarray, "v t h w 3"]:
    """What another system says of a grid, the given cells as they are. Raises UserError for a file that does not fit."""
    path = folder / f"{grid.name}.npz"
    if not path.is_file():
        raise MissingFile(f"{path} is not there: a prediction of every grid is needed, or fewer --grids")
    try:
        frames = read_array(path, "frames")
    except Exception as error:  # a damaged archive can make its readers raise anything
        raise UserError(f"{path}: cannot be read as npz ({error}); expected frames uint8 [v, t, h, w, 3]") from error
    if frames is None or frames.dtype != np.uint8 or frames.shape != grid.truth.shape:
        have = "missing" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        raise UserError(f"{path}: `frames` is {have}; expected uint8 {list(grid.truth.shape)}")
    return np.where(grid.given[:, :, None, None, None], grid.truth, frames)


def write_inputs(out: Path, grids: Sequence[EvaluationGrid]) -> None:
    """Writes what each grid gives, for other systems: frames (unknown cells black) and given, with K and c2w where known."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileInTheWay(f"--inputs {out} exists: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for grid in grids:
        cameras: Mapping[str, np.ndarray] = (
            {} if grid.cameras is None else {"K": grid.cameras.K, "c2w": grid.cameras.c2w}
        )
        np.savez_compressed(out / f"{grid.name}.npz", frames=grid.known, given=grid.given, **cameras)
