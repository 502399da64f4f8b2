"""Checkpoints of a run through orbax: saved asynchronously, the newest few kept, restored onto the target's shardings.

The state holds step, trained parameters, average and optimizer. A frozen base never changes, so it is saved once, apart.

A checkpoint counts once it is sealed: the last file in its folder lists the digests of all others. So whatever a kill, a full
disk or a power cut leaves behind is noticed before it is read, and the checkpoint before takes its place. So it does where
files cannot be read, which the next start tries again.

Of several processes each writes what its devices hold; the first one judges, deletes, and seals once all have finished.
"""

import dataclasses
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from orbax.checkpoint import v1 as ocp

from fourreal.errors import UserError, WriteFailed, one_line
from fourreal.host.processes import ALONE, Peers
from fourreal.host.retry import errno_of, file_hash, read_again
from fourreal.training.state import State

KEPT = 2  # newest checkpoints that stay
SEAL = "files.json"
UNREADABLE = ".unreadable"  # ending of a checkpoint that an earlier one has replaced until it can be read
CHECKPOINTS = "checkpoints"  # the folder of them in a run's folder


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one run folder; `done` is the number of the newest sealed one, the steps behind it.

    Opening deletes what is broken and newer than that, and sets aside what cannot be read, with a line each. Raises UserError
    where none is whole any more, OSError where none can be read.
    """

    folder: Path
    peers: Peers = ALONE
    done: int | None = dataclasses.field(init=False)

    def __post_init__(self):
        for name in ("absl", "asyncio"):  # orbax reports every save, and a failed one many times; it is raised here
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._folder = Path(self.folder).absolute()
        self.done = self.peers.of_first("newest", lambda: drop_broken(self._folder / CHECKPOINTS))
        self._manager = ocp.training.Checkpointer(
            self._folder / CHECKPOINTS,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
        )
        self._sealer = ThreadPoolExecutor(1)
        self._saving: tuple[int, Future] | None = None

    def save(self, step: int, state: State) -> None:
        """Starts to save the state after `step` steps; returns as soon as the arrays may change again.

        Raises WriteFailed if this save or the one before fails.
        """
        self.check(wait=True)
        if step == self.done:
            return
        state = dict(state)
        frozen = state.pop("frozen")
        state.pop("codec")  # the config's own
        try:
            if frozen and self.done is None:
                ocp.save(self._folder / "frozen", frozen, overwrite=True)
                self.peers.of_first("frozen", lambda: seal(self._folder / "frozen"))
            saving = self._manager.save_async(step, state)
        except Exception as error:
            raise _failure(step, error) from error
        self._saving = step, self._sealer.submit(self._finish, step, saving)

    def _finish(self, step: int, saving: ocp.AsyncResponse) -> None:
        saving.result()
        self.peers.of_first("sealed", lambda: seal(self._folder / CHECKPOINTS / str(step)))

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
        """The newest state, laid out as `shapes` (a tree of `jax.ShapeDtypeStruct`, sharded or not).

        Raises UserError for other shapes, OSError where files cannot be read.
        """
        shapes = dict(shapes)
        frozen = shapes.pop("frozen")
        shapes.pop("codec")
        damage = self.peers.of_first("damage", lambda: find_damage(self._folder / "frozen") if frozen else "")
        if damage:
            raise UserError(
                f"{self.folder / 'frozen'}, which all checkpoints need, is broken ({damage}): put a copy back, or start "
                "again with --overwrite"
            )

        def load() -> State:
            state = self._manager.load(self.done, shapes)
            return state | {"frozen": ocp.load(self._folder / "frozen", frozen) if frozen else {}}

        try:
            # of several processes one cannot load again alone: orbax has them wait for each other
            return read_again(load, () if self.peers.count > 1 else None)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the checkpoint in {self.folder} does not fit this config ({' '.join(str(error).split())[:200]}): resume "
                "with the config that the run was started with"
            ) from error

    def close(self) -> None:
        """Waits for the save under way; raises WriteFailed if it fails."""
        try:
            self.check(wait=True)
        finally:
            self._sealer.shutdown()
        self._manager.close()


def drop_broken(folder: Path) -> int | None:
    """Number of the newest whole checkpoint in a folder, after deleting the broken newer ones; None where there is none.

    One that cannot be read is set aside until the next call. A first one without a seal is one that a kill has cut off; where
    a seal shows that there was a whole one, UserError. Raises OSError where none can be read.
    """
    for path in folder.glob(f"*{UNREADABLE}"):
        saved_again = path.with_suffix("")
        whole = (saved_again / SEAL).is_file()
        shutil.rmtree(path if whole else saved_again, ignore_errors=True)
        if not whole:
            path.rename(saved_again)
    steps = sorted((int(path.name) for path in folder.glob("*") if path.name.isdigit()), reverse=True)
    broken, unreadable = {}, {}
    for step in steps:
        try:
            damage = find_damage(folder / str(step))
        except OSError as error:
            unreadable[step] = error
            continue
        if not damage:
            break
        broken[step] = damage
    else:
        step = None
        if unreadable:
            raise next(iter(unreadable.values()))
        if any((folder / str(one) / SEAL).is_file() for one in broken):
            listed = "; ".join(f"{one}: {damage}" for one, damage in broken.items())
            raise UserError(
                f"every checkpoint in {folder} is broken ({listed}): put a copy back, or start again with --overwrite"
            )
    before = "there is none before it" if step is None else f"going back to the one of {step} steps"
    for newer, damage in broken.items():
        print(f"the checkpoint of {newer} steps is broken ({damage}): {before}")
        shutil.rmtree(folder / str(newer))
    for newer, error in unreadable.items():
        kept = f"it stays as {newer}{UNREADABLE}, and the next start tries it again"
        print(f"the checkpoint of {newer} steps cannot be read ({one_line(error)}): {before}; {kept}")
        (folder / str(newer)).rename(folder / f"{newer}{UNREADABLE}")
    return step


def seal(folder: Path) -> None:
    """Writes the digests of a folder's files into it."""
    with open(folder / f"{SEAL}.tmp", "w") as file:
        json.dump(_digests(folder), file)
        file.flush()
        os.fsync(file.fileno())
    (folder / f"{SEAL}.tmp").replace(folder / SEAL)


def find_damage(folder: Path) -> str:
    """What is wrong with the files of a sealed folder; empty: nothing. Raises OSError where one cannot be read."""
    try:
        sealed = json.loads(read_again((folder / SEAL).read_text))
    except (FileNotFoundError, ValueError):
        return "it was not finished"
    found = _digests(folder)
    damage = [
        f"{name} is {'damaged' if name in found else 'missing'}" for name in sealed if found.get(name) != sealed[name]
    ]
    return damage[0] if damage else ""


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a folder, by name."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(SEAL):
            digests[str(path.relative_to(folder))] = file_hash(path)
    return digests


def _failure(step: int, error: Exception) -> WriteFailed:
    """One line for what orbax and tensorstore say in many."""
    errno = errno_of(error)
    reason = os.strerror(errno) if errno else " ".join(str(error).split())[:200]
    return WriteFailed(f"the checkpoint of {step} steps could not be saved: {reason}", errno)
