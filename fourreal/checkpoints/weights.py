"""Weights as a folder: `model.safetensors` (bfloat16 or float32) and `config.json`. Nothing is ever unpickled or executed.

Tensor names are the parameters' paths joined by dots, as in `base.blocks.attention.query.kernel`. A file may name another in
the folder that holds the rest, as runs write a frozen base once. Parameters that are cut over devices are written and read
piece by piece, so that no device and no host that need not holds more than its share.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fourreal.checkpoints.upgrade import renamed, stored
from fourreal.errors import MissingFile, UserError, WriteFailed
from fourreal.host.folders import run_path
from fourreal.host.retry import errno_of, file_hash, read_again
from fourreal.models.build import Params

DTYPES = ("F32", "BF16", "F16")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
BESIDE = "beside"  # in a file's metadata: the name of the one that holds the rest


def flat_names(params: Params) -> dict[str, Any]:
    """The tree as one dict of dotted names."""
    return traverse_util.flatten_dict(params, sep=".")


def save_weights(folder: str | Path, params: Params, config: dict[str, Any], dtype: str = "bfloat16") -> None:
    """Writes the folder; each file appears complete, by rename. Raises OSError where that fails, as on a full disk.

    Of several processes all call it and the first one writes.
    """
    tensors = gather_weights(params, dtype)
    if jax.process_index() == 0:
        write_weights(Path(folder), tensors, config)


def gather_weights(params: Params, dtype: str = "bfloat16") -> dict[str, np.ndarray]:
    """Copies of whole parameters by name on the host of process 0; all call it."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return {name: gather(value, kind) for name, value in flat_names(params).items()}


def write_weights(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], beside: str = "") -> None:
    """As `save_weights`, of tensors on this host; `beside` names the file in the folder that holds the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{CONFIG}.tmp").write_text(json.dumps(stored(config), indent=2) + "\n")
    write_tensors(folder / WEIGHTS, tensors, {BESIDE: beside} if beside else None)
    (folder / f"{CONFIG}.tmp").replace(folder / CONFIG)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes one file, which appears complete; raises OSError where that fails."""
    partial = path.with_name(f"{path.name}.tmp")
    partial.unlink(missing_ok=True)
    partial.touch()
    mode = partial.stat().st_mode  # save_file makes it private to its owner
    try:
        save_file(tensors, partial, metadata)
    except SafetensorError as error:
        raise WriteFailed(f"{path} could not be written: {error}", errno_of(error)) from error
    partial.chmod(mode)
    partial.replace(path)


def gather(x: Any, kind: np.dtype) -> np.ndarray | None:
    """A whole array on the host of process 0 (elsewhere None); devices hold one layer of stacked matrices at a time."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x).astype(kind)
    everywhere, stacked = NamedSharding(x.sharding.mesh, P()), x.ndim > 2
    if stacked:
        pieces = (jax.jit(_layer, static_argnums=2, out_shardings=everywhere)(x, i, kind) for i in range(len(x)))
    else:
        pieces = (jax.jit(_cast, static_argnums=1, out_shardings=everywhere)(x, kind),)
    if jax.process_index() > 0:
        for piece in pieces:  # one after the other here, too
            piece.block_until_ready()
        return None
    whole = [np.asarray(piece) for piece in pieces]
    return np.stack(whole) if stacked else whole[0]


def _layer(x: jax.Array, i: jax.Array, kind: np.dtype) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False).astype(kind)


def _cast(x: jax.Array, kind: np.dtype) -> jax.Array:
    return x.astype(kind)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a weights folder; raises FileNotFoundError or ValueError."""
    path = run_path(folder) / CONFIG
    if not path.is_file():
        raise MissingFile(f"{folder} holds no {CONFIG}: expected a folder of weights")
    try:
        values = json.loads(read_again(path.read_text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): copy the folder again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}: expected an object, copy the folder again")
    return values


def read_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a weights folder by name, as float32; raises on a missing, broken or non-finite file."""
    with open_weights(folder) as tensors:
        return {name: tensor[...] for name, tensor in tensors.items()}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `tensor[index]` reads that part of it as float32; raises ValueError for numbers not finite."""

    path: Path
    name: str
    shape: tuple[int, ...]
    slices: Any

    def __getitem__(self, index: Any) -> np.ndarray:
        part = np.asarray(self.slices[index]).astype(np.float32)
        if not np.isfinite(part).all():
            raise UserError(f"{self.path}: the tensor {self.name} holds values that are not finite; use other weights")
        return part


@contextlib.contextmanager
def open_weights(folder: str | Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a weights folder by today's names, to be read in parts; raises on a missing or broken file."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise MissingFile(f"{folder} holds no {WEIGHTS}: expected a folder of weights")
    with contextlib.ExitStack() as stack:
        found = {}
        for path in _files(Path(folder)):
            found |= stack.enter_context(_open_tensors(path))
        yield found


@contextlib.contextmanager
def _open_tensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    try:
        with read_again(lambda: safe_open(path, "numpy")) as file:
            slices = {renamed(name): file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            for name, tensor in slices.items():
                if (dtype := tensor.get_dtype()) not in DTYPES:
                    expected = " or ".join(DTYPES)
                    raise UserError(f"{path}: the tensor {name} is {dtype}, expected {expected}; convert it")
            yield {name: StoredTensor(path, name, tuple(tensor.get_shape()), tensor) for name, tensor in slices.items()}
    except SafetensorError as error:
        raise _broken(path, error) from error


def _files(folder: Path) -> list[Path]:
    """The files of a folder that hold its tensors. Raises MissingFile for one that is named and not there."""
    path = folder / WEIGHTS
    try:
        with read_again(lambda: safe_open(path, "numpy")) as file:
            beside = (file.metadata() or {}).get(BESIDE, "")
    except SafetensorError as error:
        raise _broken(path, error) from error
    if not beside:
        return [path]
    rest = folder / Path(beside).name
    if not rest.is_file():
        raise MissingFile(f"{folder} lacks {rest.name}, the rest of {WEIGHTS}: copy the folder as a whole")
    return [path, rest]


def _broken(path: Path, error: SafetensorError) -> UserError:
    return UserError(f"{path} is broken ({error}): copy the file again")


def read_placed(
    tensor: StoredTensor | np.ndarray | jax.Array, place: NamedSharding, dtype: Any = jnp.float32
) -> jax.Array:
    """A tensor of a file, or an array, where it lives; each process reads what its devices hold, the same part once."""
    if isinstance(tensor, jax.Array):
        return jax.device_put(tensor.astype(dtype), place)
    parts = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((at.start, at.stop) for at in index)
        if key not in parts:
            parts[key] = tensor[index].astype(dtype, copy=False)
        return parts[key]

    return jax.make_array_from_callback(tensor.shape, place, part)


def fit_weights(tensors: dict[str, StoredTensor | np.ndarray], shapes: Params, source: str) -> Params:
    """The tree of `shapes` filled from named tensors; raises ValueError on any missing, extra or misshapen one."""
    wanted = flat_names(shapes)
    for name, shape in wanted.items():
        if name not in tensors:
            raise UserError(f"{source} lacks the tensor {name}: take weights and config of the same model")
        if tensors[name].shape != shape.shape:
            raise UserError(
                f"{source}: tensor {name} is {tensors[name].shape}, expected {shape.shape} by its config: "
                "take weights and config of the same model"
            )
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise UserError(
            f"{source} has a tensor {extra[0]} that its config knows nothing of: "
            "take weights and config of the same model"
        )
    return traverse_util.unflatten_dict({name: tensors[name] for name in wanted}, sep=".")


def weights_hash(folder: str | Path) -> str:
    """SHA-256 of the weights file, in hex; of two files' hashes, where one holds the rest."""
    hashes = [file_hash(Path(folder) / WEIGHTS)]
    hashes += [file_hash(path) for path in _files(Path(folder))[1:]]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
