"""Weights as a folder: `model.safetensors` (bfloat16 or float32) and `config.json`. Nothing is ever unpickled or executed.

Tensor names are the parameters' paths joined by dots, as in `base.blocks.attention.query.kernel`.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from fourreal.models.build import Params

DTYPES = ("F32", "BF16", "F16")
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def flat_names(params: Params) -> dict[str, Any]:
    """The tree as one dict of dotted names."""
    return traverse_util.flatten_dict(params, sep=".")


def save_weights(folder: str | Path, params: Params, config: dict[str, Any], dtype: str = "bfloat16") -> None:
    """Writes the folder; each file appears complete, by rename. Raises OSError where that fails, as on a full disk."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensors = {name: np.asarray(value).astype(kind) for name, value in flat_names(jax.device_get(params)).items()}
    (folder / f"{CONFIG}.tmp").write_text(json.dumps(config, indent=2) + "\n")
    try:
        save_file(tensors, folder / f"{WEIGHTS}.tmp")
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS} could not be written: {error}") from error
    shutil.copymode(folder / f"{CONFIG}.tmp", folder / f"{WEIGHTS}.tmp")  # save_file makes it private to its owner
    (folder / f"{WEIGHTS}.tmp").replace(folder / WEIGHTS)
    (folder / f"{CONFIG}.tmp").replace(folder / CONFIG)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a weights folder; raises FileNotFoundError or ValueError."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: expected a folder of weights")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): copy the folder again") from error


def read_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a weights folder by name, as float32; raises on a missing, broken or non-finite file."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}: expected a folder of weights")
    try:
        with safe_open(path, "numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it is no dict
        for name, dtype in dtypes.items():
            if dtype not in DTYPES:
                raise ValueError(f"{path}: the tensor {name} is {dtype}, expected {' or '.join(DTYPES)}; convert it")
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is broken ({error}): copy the file again") from error
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: the tensor {broken[0]} holds values that are not finite; use other weights")
    return tensors


def fit_weights(tensors: dict[str, np.ndarray], shapes: Params, source: str) -> Params:
    """The tree of `shapes` filled from named tensors; raises ValueError on any missing, extra or misshapen one."""
    wanted = flat_names(shapes)
    for name, shape in wanted.items():
        if name not in tensors:
            raise ValueError(f"{source} lacks the tensor {name}: take weights and config of the same model")
        if tensors[name].shape != shape.shape:
            raise ValueError(
                f"{source}: tensor {name} is {tensors[name].shape}, expected {shape.shape} by its config: "
                "take weights and config of the same model"
            )
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise ValueError(
            f"{source} has a tensor {extra[0]} that its config knows nothing of: "
            "take weights and config of the same model"
        )
    return traverse_util.unflatten_dict({name: tensors[name] for name in wanted}, sep=".")


def weights_hash(folder: str | Path) -> str:
    """SHA-256 of the weights file, in hex."""
    with open(Path(folder) / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
