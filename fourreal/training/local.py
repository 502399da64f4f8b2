"""Checkpoints on the hosts' own disks: a fast tier before those in the run's folder, saved more often and read first.

Each process writes what its devices hold of the state to one file, and reads it back, so nothing crosses a network. These files
go with their host, and fit one mesh alone: then the run's folder has an older checkpoint, as it has the frozen part. That of
n steps counts where every process has its file, of this very run, and the arrays have the digests that they were saved with.
"""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from fourreal.checkpoints.weights import write_tensors
from fourreal.errors import UserError, one_line
from fourreal.host.folders import check_creatable, in_bucket
from fourreal.host.processes import ALONE, Peers
from fourreal.parallel.digest import Digests, digests
from fourreal.training.state import State

SUFFIX = ".safetensors"


class LocalCheckpoints:
    """This process's files in `folder` (none: one among those for temporary files), of the run whose folder is `run`.

    `identity` tells the run from another that was there before; `before_seal` is called in process 0 before a checkpoint
    counts. All processes call each method. Raises UserError for a folder that cannot be made.
    """

    def __init__(
        self,
        folder: str,
        run: Path,
        identity: str,
        peers: Peers = ALONE,
        before_seal: Callable[[], None] = lambda: None,
    ):
        if in_bucket(folder):
            raise UserError(f"local_folder is {folder}: give a folder on the hosts' own disks")
        name = f"{run.name}-{zlib.crc32(os.fspath(run.absolute()).encode()):08x}"
        self._folder = Path(folder or Path(tempfile.gettempdir(), "fourreal")) / name / str(peers.index)
        try:
            check_creatable(self._folder, "local_folder")
        except OSError as error:
            raise UserError(str(error)) from error
        self._identity, self._peers, self._before_seal = identity, peers, before_seal
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future | None = None

    def save(self, step: int, state: State) -> None:
        """Starts to write the state after `step` steps; returns once it is copied to this host. One that fails is said."""
        self._wait()
        changing = _changing(state)
        found, shards = digests(changing), dict(_shards(changing))
        for shard in shards.values():
            shard.copy_to_host_async()
        tensors = {name: _on_host(shard) for name, shard in shards.items()}
        self._writing = self._thread.submit(self._write, step, tensors, found)

    def _write(self, step: int, tensors: dict[str, np.ndarray], found: Digests) -> None:
        failure, listed = "", {name: int(digest) for name, digest in found.items()}
        try:
            if self._peers.first:
                self._before_seal()
            self._folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._path(step), tensors, {"run": self._identity, "digests": json.dumps(listed)})
        except OSError as error:
            failure = self._named(error)
        if failure := self._first("local written", failure):
            print(f"the local checkpoint of {step} steps could not be saved ({failure})")
        self._keep(None if failure else step)

    def restore(self, shapes: State, after: int) -> tuple[int, State] | None:
        """(steps, state without the frozen part) of the newest one of more than `after` steps, laid out as `shapes`; None
        where there is none. All others go."""
        shapes = _changing(shapes)
        there = self._peers.exchange("local steps", [step for step in self._steps() if step > after])
        for step in sorted(set.intersection(*map(set, there)), reverse=True):
            failure, state, listed = "", None, {}
            try:
                state, listed = self._read(step, shapes)
            except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
                failure = self._named(error)
            failure = self._first("local read", failure)
            if not failure:
                found = {name: int(digest) for name, digest in digests(state).items()}
                failure = next((f"{name} is damaged" for name in found if found[name] != listed.get(name)), "")
            if not failure:
                self._keep(step)
                return step, state
            print(f"the local checkpoint of {step} steps cannot be used ({failure})")
        self._keep(None)
        return None

    def _read(self, step: int, shapes: State) -> tuple[State, dict[str, int]]:
        """(the arrays of this process's file, the digests that all of them had)."""

        def read(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
            arrays, part = [], shape.sharding.shard_shape(shape.shape)
            for key, devices in _parts(name, shape).items():
                tensor = file.get_tensor(key)
                if (tensor.shape, tensor.dtype) != (part, shape.dtype):
                    raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, expected {shape.dtype} {part}")
                arrays += [jax.device_put(tensor, device) for device in devices]
            return jax.make_array_from_single_device_arrays(shape.shape, shape.sharding, arrays)

        with safe_open(self._path(step), "numpy") as file:
            listed = json.loads(file.metadata()["digests"])
            return jax.tree_util.tree_map_with_path(lambda path, x: read(jax.tree_util.keystr(path), x), shapes), listed

    def drop(self) -> None:
        """Deletes all: the run goes on from elsewhere, or needs none any more."""
        self._wait()
        self._keep(None)
        self._peers.exchange("local dropped")

    def _wait(self) -> None:
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}{SUFFIX}"

    def _steps(self) -> list[int]:
        """Of this process's files that are of this run."""
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError, SafetensorError, ValueError), safe_open(path, "numpy") as file:
                found += [int(path.stem)] if (file.metadata() or {}).get("run") == self._identity else []
        return found

    def _keep(self, step: int | None) -> None:
        """Deletes all but one; with that, too, the folders."""
        for path in self._folder.glob("*"):
            if step is None or path != self._path(step):
                path.unlink(missing_ok=True)
        if step is None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                self._folder.parent.rmdir()

    def _named(self, error: Exception) -> str:
        return f"{self._peers.name(self._peers.index)}: {one_line(error)}"

    def _first(self, name: str, failure: str) -> str:
        """What failed in the first process in which something did."""
        return next(filter(None, self._peers.exchange(name, failure)), "")


def _changing(state: State) -> State:
    """Without what the run's folder has, the frozen part, or the config, the codec's."""
    return {name: part for name, part in state.items() if name not in ("frozen", "codec")}


def _parts(name: str, x: Any) -> dict[str, list[jax.Device]]:
    """This process's devices by what they hold of an array, or of its shape, under a name for that."""
    found: dict[str, list[jax.Device]] = {}
    for device, index in x.sharding.addressable_devices_indices_map(x.shape).items():
        places = [at.indices(size)[:2] for at, size in zip(index, x.shape, strict=True)]
        found.setdefault(f"{name} {places}", []).append(device)
    return found


def _shards(state: State) -> Iterator[tuple[str, jax.Array]]:
    """What this process's devices hold, each part once."""
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        data = {shard.device: shard.data for shard in x.addressable_shards}
        for name, devices in _parts(jax.tree_util.keystr(path), x).items():
            yield name, data[devices[0]]


def _on_host(shard: jax.Array) -> np.ndarray:
    """A copy, also where the device's memory is the host's: a step overwrites it."""
    on_cpu = next(iter(shard.devices())).platform == "cpu"
    return np.array(shard, copy=True if on_cpu else None)
