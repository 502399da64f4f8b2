"""Folders that commands write: whether one can be made is found out before the work, it appears whole or not at all, and
one process at a time trains in it. One of a run may be in a bucket, see `bucket.py`."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fourreal.errors import UserError

LEASE = "lease.json"  # says who writes to a folder in a bucket, see `lease.py`
BUCKETS = "gs:/"  # what the name of a folder in a bucket begins with; a `Path` leaves one slash


def run_path(name: str | os.PathLike[str]) -> Path:
    """The folder or file that a name means, in a bucket, too: there a path of epath, which has the methods of a `Path`."""
    if not in_bucket(name):
        return Path(name)
    from fourreal.host.bucket import BucketPath

    return BucketPath(f"gs://{os.fspath(name).removeprefix(BUCKETS).lstrip('/')}")


def in_bucket(name: str | os.PathLike[str]) -> bool:
    """Whether a name is one of a folder or file in a bucket."""
    return os.fspath(name).startswith(BUCKETS)


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all in it."""
    if in_bucket(path):
        path.rmtree()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole, and once it is on the disk."""
    if in_bucket(path):
        path.write_text(text)
        return
    building = path.with_name(f"{path.name}.tmp")
    with open(building, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    building.replace(path)


def check_creatable(out: Path, option: str = "--out") -> None:
    """Raises OSError unless the folder `out`, which may exist, and others beside it can be made; `option` names it."""
    try:
        if out.is_symlink() and not out.exists():
            raise OSError(0, "a link to nothing")
        parent = next((folder for folder in out.absolute().parents if folder.exists()), out)
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=parent).cleanup()
    except OSError as error:
        place = "name a folder where you may write"
        raise OSError(f"{option} {out} cannot be made ({error.strerror}): {place}") from error


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A name beside `out`. The folder made there takes the place of `out` at the end, or vanishes on any error or Ctrl-C."""
    out = out.resolve()
    made = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (out.with_name(f".{out.name}.{word}-{os.getpid()}") for word in ("partial", "old"))
    try:
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in made if not out.exists() else ():
            folder.rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder where there is none, and lets no other process train in it for as long as this one lives.

    Raises ValueError where another one does. A folder that is still empty at the end goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise UserError(f"another process is training in {folder}: wait for it, or give another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
        os.close(descriptor)


def partial_folder(out: Path) -> Path:
    """Where `resumed_folder` keeps what `out` is made from."""
    out = out.resolve()
    return out.with_name(f".{out.name}.partial")


@contextmanager
def resumed_folder(out: Path, keep: Callable[[Path], bool]) -> Iterator[Path]:
    """The folder `.OUT.partial` beside `out`, as an earlier call left it or new, for the caller to make `out` from.

    It goes at the end; on any error or Ctrl-C it stays if `keep` says that it holds work. Raises UserError while another
    process uses it.
    """
    out = out.resolve()
    made = [folder for folder in out.parents if not folder.exists()]
    partial = partial_folder(out)
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is writing {out}: wait for it, or name another folder") from None
    kept = True
    try:
        yield partial
        kept = False
    except BaseException:
        kept = keep(partial)
        raise
    finally:
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made if not out.exists() else ():
                folder.rmdir()
        os.close(descriptor)
