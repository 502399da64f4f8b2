"""Checkpoints on the hosts' own disks: a fast tier before those in the run's folder, saved more often and read first.

Each process writes what its devices hold of the state to one file, and reads it back, so no array crosses a network. A local
checkpoint is used if it is newer than that of the run's folder, every process still has its file of it, of this very run and
the same mesh, and the arrays have the digests with which they were saved. The frozen part is in the run's folder alone.
"""

import contextlib
import json
import os
import shutil
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
from fourreal.errors import Damaged, UserError, one_line
from fourreal.host.folders import check_creatable, in_bucket
from fourreal.host.processes import ALONE, Peers
from fourreal.parallel.digest import Digests, digests
from fourreal.training.state import State, changing

SUFFIX, READING = ".safetensors", ".reading"


class LocalCheckpoints:
    """This process's files in `folder` (none: one among those for temporary files), of the run whose folder is `run`.

    `identity()` tells the run, and what data it has left out, from what was there before; `before_seal` is called in process 0
    before a checkpoint counts. All processes call each method. Raises UserError for a folder that cannot be made.
    """

    def __init__(
        self,
        folder: str,
        run: Path,
        identity: Callable[[], str],
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

    def save(self, step: int, state: State, bad: int) -> None:
        """Starts to write the state after `step` steps; returns once it is copied to this host. One that fails prints a line.

        `bad` is how many of the steps count against the budget of bad ones.
        """
        self.wait()
        state = changing(state)
        found, shards = digests(state), dict(_shards(state))
        for shard in shards.values():
            shard.copy_to_host_async()
        tensors = {name: _on_host(shard) for name, shard in shards.items()}
        self._writing = self._thread.submit(
            self._write, step, tensors, found, {"run": self._identity(), "bad": str(bad)}
        )

    def _write(self, step: int, tensors: dict[str, np.ndarray], found: Digests, metadata: dict[str, str]) -> None:
        failure, listed = "", {name: int(digest) for name, digest in found.items()}
        try:
            if self._peers.first:
                self._before_seal()
            self._folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._path(step), tensors, metadata | {"digests": json.dumps(listed)})
        except OSError as error:
            failure = self._named(error)
        if failure := self._first("local written", failure):
            print(f"the local checkpoint of {step} steps could not be saved ({failure})")
        mine = {name for name in self._names() if name.split(".")[0] == str(step)}
        self._delete(mine if failure else self._names() - mine)

    def restore(self, shapes: State, after: int) -> tuple[int, State, int] | None:
        """(steps, state without the frozen part, bad steps) of the newest local checkpoint of more than `after` steps, laid out
        as `shapes`; None where there is none. Deletes all others."""
        shapes = changing(shapes)
        self._delete_strays()
        there = self._peers.exchange("local steps", [step for step in self._steps() if step > after])
        for step in sorted(set.intersection(*map(set, there)), reverse=True):
            failure, state, listed, bad = "", None, {}, 0
            try:
                state, listed, bad = self._read(step, shapes)
            except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
                failure = self._named(error)
            failure = self._first("local read", failure)
            if not failure:
                found = {name: int(digest) for name, digest in digests(state).items()}
                damaged = next((name for name in found if found[name] != listed.get(name)), "")
                failure = self._first("local compared", damaged and self._named(Damaged(f"{damaged} is damaged")))
            if not failure:
                listings = self._peers.exchange("local listed", zlib.crc32(json.dumps(listed).encode()))
                failure = "the processes have files of different states" if len(set(listings)) > 1 else ""
            if not failure:
                self._delete({name for name in self._names() if name != self._path(step).name})
                return step, state, bad
            print(f"the local checkpoint of {step} steps cannot be used ({failure})")
        self._delete(self._names())
        return None

    def _read(self, step: int, shapes: State) -> tuple[State, dict[str, int], int]:
        """(the arrays of this process's file, the digests that all arrays had, bad steps).

        Meanwhile the file has another name: safetensors maps it into memory, and a disk that cannot read it kills the process.
        """

        def read(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
            arrays, part = [], shape.sharding.shard_shape(shape.shape)
            for key, devices in _parts(name, shape).items():
                tensor = file.get_tensor(key)
                if (tensor.shape, tensor.dtype) != (part, shape.dtype):
                    raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, expected {shape.dtype} {part}")
                arrays += [jax.device_put(tensor, device) for device in devices]
            return jax.make_array_from_single_device_arrays(shape.shape, shape.sharding, arrays)

        path = self._path(step)
        path.rename(reading := path.with_suffix(READING))
        with safe_open(reading, "numpy") as file:
            about = file.metadata()
            state = jax.tree_util.tree_map_with_path(lambda path, x: read(jax.tree_util.keystr(path), x), shapes)
        reading.rename(path)
        return state, json.loads(about["digests"]), int(about["bad"])

    def drop(self) -> None:
        """Deletes all: the run goes on from elsewhere, or needs none any more."""
        self.wait()
        self._delete_strays()
        self._delete(self._names())
        self._peers.exchange("local dropped")

    def wait(self) -> None:
        """Until what is being written is there."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}{SUFFIX}"

    def _steps(self) -> list[int]:
        """Of this process's files that are of this run."""
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError, SafetensorError, ValueError), safe_open(path, "numpy") as file:
                found += [int(path.stem)] if (file.metadata() or {}).get("run") == self._identity() else []
        return found

    def _names(self) -> set[str]:
        """Of all files of this process."""
        return {path.name for path in self._folder.glob("*")}

    def _delete(self, names: set[str]) -> None:
        """Deletes such files, and then the folders if they are empty."""
        with contextlib.suppress(OSError):
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def _delete_strays(self) -> None:
        """Deletes what processes left on this host that are on another now, or are no more."""
        hosts, here = self._peers.hosts, self._peers.hosts[self._peers.index]
        for folder in self._folder.parent.glob("[0-9]*"):
            if int(folder.name) >= len(hosts) or hosts[int(folder.name)] != here:
                shutil.rmtree(folder, ignore_errors=True)

    def _named(self, error: Exception) -> str:
        return f"{self._peers.name(self._peers.index)}: {one_line(error)}"

    def _first(self, name: str, failure: str) -> str:
        """What failed in the first process in which something did."""
        return next(filter(None, self._peers.exchange(name, failure)), "")


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
