"""Checkpoints of a run through orbax, on a disk or in a bucket: saved asynchronously, the newest few kept, restored onto the
target's shardings.

The state holds step, trained parameters, average and optimizer. A frozen base never changes, so it is saved once, apart.

A checkpoint counts once it is sealed: the last file in its folder lists the sizes of all others and the digests of the arrays,
which the devices computed (see `digest.py`): nothing is read to seal it. Sizes are checked before a checkpoint is read, so
whatever a kill or a full disk leaves behind is noticed, and all arrays after it was; in a bucket, where a file is there whole
or not at all, that it is there. Where either fails, or files cannot be read, the checkpoint before takes its place. What
could not be read stays where it is until its steps are saved again, and the next start tries it again.

Of several processes each writes and reads what its devices hold; the first one judges, deletes, and seals once all have
finished. Older checkpoints go after the seal.
"""

import dataclasses
import errno
import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from fourreal.errors import FAULTS, Damaged, UserError, WriteFailed, one_line
from fourreal.host.folders import in_bucket, run_path, write_whole
from fourreal.host.processes import ALONE, Peers
from fourreal.host.retry import errno_of, file_hash, read_again
from fourreal.parallel.digest import Digests, digests
from fourreal.training.state import State, changing

KEPT = 2  # newest checkpoints that stay
SEAL = "files.json"
UNFINISHED = "*.orbax-checkpoint-tmp*"  # folders that orbax renames on a disk when it has written them
CHECKPOINTS = "checkpoints"  # the folder of them in a run's folder


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one run folder; `done` is the number of the newest sealed one, the steps behind it.

    Opening deletes what is broken and newer than that, and sets aside what cannot be read, with a line each. Raises UserError
    where none is whole any more, OSError where none can be read.
    """

    folder: Path
    peers: Peers = ALONE
    keep_every: int = 0  # those of whole multiples of so many steps stay, too; 0: none
    before_seal: Callable[[], None] = lambda: None  # in process 0: writes what a sealed checkpoint relies on
    done: int | None = dataclasses.field(init=False)
    seconds: float = dataclasses.field(default=0.0, init=False)  # that the last save took

    def __post_init__(self):
        for name in ("absl", "asyncio"):  # orbax reports every save, and a failed one many times; it is raised here
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._folder = epath.Path(run_path(self.folder).absolute())
        self.done = self.peers.of_first("newest", lambda: drop_broken(self._folder / CHECKPOINTS))
        self._aside: set[int] = set()  # process 0's: those newer than `done`, which could not be read
        self.peers.of_first("aside", self._set_aside)
        self._sealer = ThreadPoolExecutor(1)
        self._saving: tuple[int, Future] | None = None

    def save(self, step: int, state: State) -> None:
        """Starts to save the state after `step` steps; returns as soon as the arrays may change again.

        Raises WriteFailed if this save or the one before fails.
        """
        self.check(wait=True)
        if step == self.done:
            return
        began = time.monotonic()
        frozen, state = state["frozen"], changing(state)
        try:
            if frozen and self.done is None:
                self._save_frozen(frozen)
            found = digests(state)
            folder = self._folder / CHECKPOINTS / str(step)
            self.peers.of_first("way", lambda: folder.rmtree(missing_ok=True))  # of what was set aside
            saving = ocp.save_async(folder, state)
        except Exception as error:
            raise _failure(step, error) from error
        listed = described(state)
        self._saving = step, self._sealer.submit(self._finish, step, saving, listed, found, began)

    def _save_frozen(self, frozen: State) -> None:
        """Writes the frozen part, unless it is there."""
        folder, found = self._folder / "frozen", digests(frozen)

        def is_there() -> bool:
            return not find_damage(folder) and not difference(read_seal(folder), found)

        if not self.peers.of_first("frozen", is_there):
            ocp.save(folder, frozen, overwrite=True)
            self.peers.of_first("frozen", lambda: seal(folder, described(frozen), found))

    def _finish(
        self, step: int, saving: ocp.AsyncResponse, listed: dict[str, list], found: Digests, began: float
    ) -> None:
        saving.result()
        self.peers.of_first("sealed", lambda: self._seal(step, listed, found))
        self.seconds = time.monotonic() - began

    def _seal(self, step: int, listed: dict[str, list], found: Digests) -> None:
        """Seals a checkpoint, and deletes those that it replaces."""
        self.before_seal()
        read_again(lambda: seal(self._folder / CHECKPOINTS / str(step), listed, found), doing="writing")
        self._aside.discard(step)
        older = [one for one in _steps(self._folder / CHECKPOINTS) if one <= step]
        kept = [one for one in older if one not in self._aside][:KEPT]
        for one in older:
            if one not in kept and not (self.keep_every and one % self.keep_every == 0):
                (self._folder / CHECKPOINTS / str(one)).rmtree()

    def _set_aside(self) -> None:
        self._aside |= {step for step in _steps(self._folder / CHECKPOINTS) if step > (self.done or 0)}

    def check(self, wait: bool = False) -> None:
        """Raises WriteFailed if the save under way has failed; `wait`: waits for it."""
        if self._saving and (wait or self._saving[1].done()):
            (step, saving), self._saving = self._saving, None
            try:
                saving.result()
            except Exception as error:
                raise _failure(step, error) from error
            self.done = step

    def restore(self, shapes: State) -> State:
        """The newest state, laid out as `shapes` (a tree of `jax.ShapeDtypeStruct`, sharded or not); `done` says which.

        One that cannot be read, or not as it was written, is set aside for the one before, with a line. Raises UserError for
        other shapes and where none is whole, OSError where none can be read.
        """
        frozen, shapes = self.restore_frozen(shapes["frozen"]), changing(shapes)
        failures: dict[int, Exception] = {}
        step = self.done
        while True:
            state, failure = self._load(self._folder / CHECKPOINTS / str(step), shapes)
            if not failure:
                break
            failures[step] = failure
            step = self.peers.of_first("before", lambda: newest_before(self._folder / CHECKPOINTS, failures))
        self.done = step
        if failures:
            self.peers.of_first("aside", lambda: say_set_aside(failures, step))
            self.peers.of_first("aside", self._set_aside)
        return state | {"frozen": frozen}

    def restore_frozen(self, shapes: State) -> State:
        """The frozen part, laid out as its shapes. Raises UserError where it is broken, OSError where it cannot be read."""
        folder = self._folder / "frozen"
        if not shapes:
            return {}
        if damage := self.peers.of_first("damage", lambda: find_damage(folder)):
            raise _broken_frozen(folder, damage)
        frozen, failure = self._load(folder, shapes)
        if failure:
            raise failure if isinstance(failure, OSError) else _broken_frozen(folder, str(failure))
        return frozen

    def _load(self, folder: epath.Path, shapes: State) -> tuple[State, None] | tuple[None, Exception]:
        """A sealed folder's arrays, or what reading them failed by: OSError, or Damaged. Raises UserError for other shapes."""
        listed = described(shapes)
        known = self.peers.of_first("fits", lambda: check_fit(folder, listed))
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})  # nobody waits for another
        state, failure = None, None

        def load() -> State:
            with ocp.Context(multiprocessing_options=alone):
                return ocp.load(folder, shapes)

        try:
            state = read_again(load)
        except (RuntimeError, MemoryError):  # of a device, say
            raise
        except Exception as error:
            number = errno_of(error)
            failure = [one_line(error)[:120], number if number in FAULTS else None]
        failure = next(filter(None, self.peers.exchange("loaded", failure)), None)
        if failure and not known and failure[1] is None:
            raise _misfit(folder, failure[0])
        if not failure:
            found = digests(state)
            damage = self.peers.of_first("compared", lambda: difference(read_seal(folder), found))
            failure = damage and [damage, None]
        if not failure:
            return state, None
        text, number = failure
        return None, OSError(number, text) if number else Damaged(text)

    def close(self) -> None:
        """Waits for the save under way; raises WriteFailed if it fails."""
        try:
            self.check(wait=True)
        finally:
            self._sealer.shutdown()


def drop_broken(folder: epath.Path) -> int | None:
    """Number of the newest checkpoint in a folder that is whole by its sizes, after deleting newer ones that are not; None
    where there is none.

    One whose seal cannot be read stays, newer than that. A first one without a seal is one that a kill has cut off;
    where a seal shows that there was a whole one, UserError. Raises OSError where none can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(UNFINISHED):
        path.rmtree()
    broken, unreadable = {}, {}
    for step in _steps(folder):
        try:
            damage = find_damage(folder / str(step))
        except OSError as error:
            unreadable[step] = error
            continue
        if not damage:
            break
        broken[step] = Damaged(damage)
    else:
        step = None
        if unreadable or any((folder / str(one) / SEAL).is_file() for one in broken):
            raise none_left(folder, broken | unreadable)
    for newer, damage in broken.items():
        print(f"the checkpoint of {newer} steps is broken ({damage}): {_before(step)}")
        (folder / str(newer)).rmtree()
    say_set_aside(unreadable, step)
    return step


def newest_before(folder: epath.Path, failures: dict[int, Exception]) -> int:
    """Number of the newest checkpoint that is older than those that failed and whole by its sizes; raises where none is."""
    for step in _steps(folder):
        if step < min(failures):
            try:
                damage = find_damage(folder / str(step))
            except OSError as error:
                failures = failures | {step: error}
                continue
            if not damage:
                return step
            failures = failures | {step: Damaged(damage)}
    raise none_left(folder, failures)


def none_left(folder: epath.Path, failures: dict[int, Exception]) -> Exception:
    """The error of a folder whose checkpoints all fail: OSError where one cannot be read, which a new start may mend."""
    listed = "; ".join(f"{step}: {failure}" for step, failure in failures.items())
    unreadable = [failure for failure in failures.values() if isinstance(failure, OSError)]
    return next(iter(unreadable), None) or UserError(
        f"every checkpoint in {folder} is broken ({listed}): put a copy back, or start again with --overwrite"
    )


def say_set_aside(failures: dict[int, Exception], step: int | None) -> None:
    """Prints which checkpoints could not be read, in whose place that of `step` steps comes."""
    for newer, failure in failures.items():
        kept = "it stays, and the next start tries it again"
        print(f"the checkpoint of {newer} steps cannot be read ({one_line(failure)}): {_before(step)}; {kept}")


def _steps(folder: epath.Path) -> list[int]:
    return sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True)


def _before(step: int | None) -> str:
    return "there is none before it" if step is None else f"going back to the one of {step} steps"


def described(tree: Any) -> dict[str, list]:
    """Type and shape of the arrays of a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): [str(x.dtype), list(x.shape)] for path, x in leaves}


def seal(folder: epath.Path, listed: dict[str, list], found: Digests) -> None:
    """Writes into a folder the sizes of its files, and types, shapes and digests of its arrays."""
    arrays = {name: [*listed[name], int(digest)] for name, digest in found.items()}
    sealed = {"files": _sizes(folder), "arrays": arrays}
    write_whole(folder / SEAL, json.dumps({"sealed": sealed, "crc32": zlib.crc32(json.dumps(sealed).encode())}))


def read_seal(folder: epath.Path) -> dict[str, Any]:
    """What a folder's seal says: `files` by name, and `arrays`, None under a seal of an earlier version.

    Raises ValueError for a broken or missing one, OSError where it cannot be read.
    """
    try:
        values = json.loads(read_again((folder / SEAL).read_text))
    except FileNotFoundError as error:
        raise ValueError from error
    if "crc32" not in values:
        return {"files": values, "arrays": None}
    if zlib.crc32(json.dumps(values["sealed"]).encode()) != values["crc32"]:
        raise ValueError
    return values["sealed"]


def find_damage(folder: Path | epath.Path) -> str:
    """What is wrong with the files of a sealed folder by their sizes; empty: nothing. Raises OSError where one cannot be read.

    A seal of an earlier version lists SHA-256 of the files, which are read for it.
    """
    try:
        sealed = read_seal(folder)
    except (ValueError, LookupError, TypeError):
        return "it was not finished"
    expected = sealed["files"]
    found = (
        _sizes(folder) if sealed["arrays"] is not None else {name: file_hash(folder / name) for name in _sizes(folder)}
    )
    damage = [
        f"{name} is {'damaged' if name in found else 'missing'}"
        for name in expected
        if name not in found or (None not in (found[name], expected[name]) and found[name] != expected[name])
    ]
    return damage[0] if damage else ""


def check_fit(folder: epath.Path, listed: dict[str, list]) -> bool:
    """Whether a folder's seal lists these arrays; False for one of an earlier version, UserError for one that lists others."""
    arrays = read_seal(folder)["arrays"]
    if arrays is None:
        return False
    there = {name: array[:2] for name, array in arrays.items()}
    if there != listed:
        name = next(name for name in there | listed if there.get(name) != listed.get(name))
        raise _misfit(folder, f"{name} is {there.get(name)} there, {listed.get(name)} here")
    return True


def difference(sealed: dict[str, Any], found: Digests) -> str:
    """Which array is not as it was sealed; empty: none, or a seal of an earlier version."""
    arrays = sealed["arrays"] or {}
    return next(
        (f"{name} is damaged" for name in arrays if name not in found or arrays[name][2] != int(found[name])), ""
    )


def _sizes(folder: Path | epath.Path) -> dict[str, int | None]:
    """Bytes of the files of a folder, by name; None for each in a bucket, which tells none."""
    files = sorted(
        top / name for top, _, names in epath.Path(folder).walk() for name in names if not name.startswith(SEAL)
    )
    sizes = (None if in_bucket(path) else os.stat(path).st_size for path in files)
    return {str(path.relative_to(folder)): size for path, size in zip(files, sizes, strict=True)}


def _misfit(folder: epath.Path, why: str) -> UserError:
    return UserError(
        f"the checkpoint in {folder} does not fit this config ({why}): resume with the config that the run was started with"
    )


def _broken_frozen(folder: epath.Path, damage: str) -> UserError:
    return UserError(
        f"{folder}, which all checkpoints need, is broken ({damage}): put a copy back, or start again with --overwrite"
    )


def _failure(step: int, error: Exception) -> WriteFailed:
    """One line for what orbax and tensorstore say in many."""
    number = errno_of(error)
    told = number in (None, errno.EHOSTUNREACH)  # the second is how a bucket does not answer
    reason = " ".join(str(error).split())[:200] if told else os.strerror(number)
    return WriteFailed(f"the checkpoint of {step} steps could not be saved: {reason}", number)
