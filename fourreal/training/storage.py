"""Where a run's files are: all in its folder on a disk; or in a bucket, where one writer holds a lease.

Objects cannot be appended to. Of a run in a bucket each process writes the log, its pictures, weights and profiles to a folder
of its own on this host, which goes in the end, and copies to the bucket what has changed:

    fetch    a resumed run begins with what the bucket has of the log
    sync     before each checkpoint is sealed, after weights are written, and at the end

So the log of a sealed checkpoint is there, whenever a process is killed. Checkpoints are written straight to the bucket.
"""

import contextlib
import functools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fourreal.checkpoints.specs import RUN_WEIGHTS
from fourreal.errors import UserError
from fourreal.host.folders import LEASE, in_bucket, locked
from fourreal.host.processes import Peers
from fourreal.host.retry import read_again
from fourreal.training.run_folder import COMPILED

# Of a run's folder, what a resumed run does not fetch.
FAR = ("checkpoints", "frozen", "sheets", "profile", RUN_WEIGHTS, COMPILED, LEASE)
PREFIX = "fourreal-run-"  # of the names of temporary folders


class Storage:
    """A run's `folder`, and the folder `work` of this host for the files that it writes piece by piece: the same one."""

    def __init__(self, folder: Path):
        self.folder = self.work = folder

    def fetch(self) -> None:
        """Brings the files that a resumed run goes on with to `work`."""

    def sync(self) -> None:
        """Copies what has changed in `work` to the run's folder. Raises OSError where that fails."""

    def renew(self) -> None:
        """Makes sure that this process is still the only writer; else it ends here."""

    def before_seal(self) -> None:
        """Makes ready what a sealed checkpoint relies on."""
        read_again(self.renew, doing="writing")
        self.sync()

    def has(self, name: str) -> bool:
        """Whether a file is in the run's folder."""
        return (self.folder / name).is_file()


class BucketStorage(Storage):
    """A run's folder in a bucket, and a new one on this host; `renew` is the lease's."""

    def __init__(self, folder: Path, work: Path, renew: Callable[[], None]):
        self.folder, self.work, self.renew = folder, work, renew
        self._sent: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def fetch(self) -> None:
        """As above."""
        from fourreal.host.bucket import names

        for name in names(self.folder):
            if name.split("/")[0] not in FAR and name and not name.endswith("/"):
                path = self.work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((self.folder / name).read_bytes())
                self._sent[path] = stamp(path)

    def sync(self) -> None:
        """As above. Weights need no room here afterwards."""
        from fourreal.host.bucket import put

        with self._lock:
            for path in sorted(self.work.rglob("*")):
                with contextlib.suppress(FileNotFoundError):
                    found = None
                    if path.is_file() and path.suffix != ".tmp" and self._sent.get(path) != stamp(path):
                        found = stamp(path), path.read_bytes()
                if found:
                    write = functools.partial(put, self.folder / path.relative_to(self.work), found[1])
                    read_again(write, doing="writing")
                    self._sent[path] = found[0]
                    if path.is_relative_to(self.work / RUN_WEIGHTS):
                        path.unlink()


@contextlib.contextmanager
def open_storage(folder: Path, peers: Peers) -> Iterator[Storage]:
    """The storage of a run, which nobody else may write to meanwhile. Raises UserError where another process trains in it."""
    with contextlib.ExitStack() as stack:
        if not in_bucket(folder):
            peers.of_first("lock", lambda: stack.enter_context(locked(folder)))
            yield Storage(folder)
            return
        from fourreal.host.lease import leased

        leases = []
        peers.of_first("lock", lambda: leases.append(stack.enter_context(leased(folder))))
        work = stack.enter_context(folder_of_this_process())
        yield BucketStorage(folder, work, leases[0].renew if leases else lambda: None)


@contextlib.contextmanager
def folder_of_this_process(settled: float = 60.0) -> Iterator[Path]:
    """A new temporary folder, which goes in the end; those of killed processes, older than `settled` seconds, go first."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(UserError, OSError):
            if time.time() - left.stat().st_mtime > settled:  # else it may not be locked yet
                with locked(left):
                    shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=PREFIX))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a disk that knows no locks; nobody deletes there either
            stack.enter_context(locked(work))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        yield work


def stamp(path: Path) -> tuple[int, int]:
    """What changes with a file: its size and time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
