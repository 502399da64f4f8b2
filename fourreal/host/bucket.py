"""Folders and files in a bucket of Google Cloud Storage, `gs://BUCKET/...`, by tensorstore alone.

A file is an object: it is there whole or not at all, is replaced by one write, and cannot be appended to. A folder is what the
names of objects begin with, so making one writes an empty object of its name, as other tools do, and moving one is refused: it
would copy all. Importing this module makes `epath.Path("gs://...")` such a path, also for orbax, which writes arrays there.
"""

import errno
import fnmatch
import functools
import io
import itertools
import os
from collections.abc import Callable
from typing import Any

import tensorstore
from etils import epath
from etils.epath import backend, gpath, stat_utils

from fourreal.errors import MissingFile, UserError, one_line

SCHEME = "gs://"
RETRIES = {"max_retries": 5, "initial_delay": "500ms", "max_delay": "4s"}  # by tensorstore, of a request
ABSENT = b"\2"  # tensorstore's generation of what is not there
RANGE = tensorstore.KvStore.KeyRange


@functools.cache
def open_bucket(bucket: str) -> tensorstore.KvStore:
    """All objects of a bucket by name. Raises UserError for what cannot be the name of one."""
    spec = {"driver": "gcs", "bucket": bucket, "context": {"gcs_request_retries": RETRIES}}
    try:
        return tensorstore.KvStore.open(spec).result()
    except ValueError as error:
        raise UserError(f"'{bucket}' is no name of a bucket: name a folder as gs://BUCKET/runs/NAME") from error


def split(path: str | os.PathLike[str]) -> tuple[str, str]:
    """(bucket, name of the object) of `gs://BUCKET/NAME`."""
    bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
    return bucket, name.strip("/")


def ask(path: str | os.PathLike[str], request: Callable[[tensorstore.KvStore, str], Any]) -> Any:
    """What `request(bucket, name)` says about a path. Raises UserError for what a user must mend, OSError for the rest."""
    bucket, name = split(path)
    try:
        return request(open_bucket(bucket), name).result()
    except UserError:
        raise
    except ValueError as error:
        kind = str(error).partition(":")[0]
        if kind in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            raise UserError(
                f"{path}: the bucket gives no permission: log in with `gcloud auth application-default login`, or have the "
                "account granted roles/storage.objectUser"
            ) from error
        if kind == "NOT_FOUND":
            raise MissingFile(f"there is no bucket {SCHEME}{bucket}: make it, or name another") from error
        if kind == "OUT_OF_RANGE":
            raise EOFError from error
        raise OSError(errno.EHOSTUNREACH, f"{path} does not answer: {one_line(error)}") from error


def read(path: str | os.PathLike[str]) -> tuple[bytes, bytes] | None:
    """(bytes, generation) of an object; None where there is none."""
    found = ask(path, lambda store, name: store.read(name))
    return (found.value, found.stamp.generation) if found.state == "value" else None


def put(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes an object, whatever is there."""
    ask(path, lambda store, name: store.write(name, data))


def write(path: str | os.PathLike[str], data: bytes | None, over: bytes | None) -> bytes | None:
    """Writes an object over that generation of it, None: where there is none; its own one, or None where another is there.

    Without `data` deletes it.
    """
    stamp = ask(path, lambda store, name: store.write(name, data, if_equal=ABSENT if over is None else over))
    return stamp.generation or None


def names(folder: str | os.PathLike[str]) -> list[str]:
    """Names of all objects below a folder, from it on; an empty one is that of the folder itself."""
    below = ask(folder, lambda store, name: store.list(_below(name), len(_prefix(name))))
    if not below:  # tensorstore takes a refusal for an empty list
        is_object(folder)
    return sorted(name.decode() for name in below)


def is_object(path: str | os.PathLike[str]) -> bool:
    """Whether there is an object of this very name."""
    return generation(path) is not None


def generation(path: str | os.PathLike[str]) -> bytes | None:
    """What tells an object from what was there before and after; None where there is none."""
    try:
        found = ask(path, lambda store, name: store.read(name or "/", byte_range=slice(0, 1)))
    except EOFError:  # an empty one, which has no first byte
        found = ask(path, lambda store, name: store.read(name))
    return found.stamp.generation if found.state == "value" else None


def _prefix(name: str) -> str:
    return f"{name}/" if name else ""


def _below(name: str) -> RANGE:
    return RANGE(f"{name}/", f"{name}0") if name else RANGE()  # 0 comes after /


class Upload(io.BytesIO):
    """A file that is written as one object when it is closed."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__()
        self.path = path

    def close(self) -> None:
        """Writes it."""
        data = None if self.closed else self.getvalue()
        super().close()  # first: what fails is not tried again when this object goes
        if data is not None:
            put(self.path, data)


class BucketBackend(backend.Backend):
    """What `epath.Path` asks of a file system."""

    def open(self, path, mode):
        """A whole object, to be read or written."""
        if "w" in mode:
            file = Upload(path)
        elif "r" in mode:
            found = read(path)
            if found is None:
                raise _missing(path)
            file = io.BytesIO(found[0])
        else:
            raise io.UnsupportedOperation(f"{path}: an object cannot be appended to")
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def exists(self, path):
        """Whether it is an object or a folder."""
        return is_object(path) or self.isdir(path)

    def isdir(self, path):
        """Whether there is anything below it."""
        return bool(names(path))

    def listdir(self, path):
        """Names of files and folders in a folder."""
        below = names(path)
        if not below:
            raise _missing(path)
        return sorted({name.split("/")[0] for name in below if name})

    def glob(self, path):
        """Files and folders; wildcards stand for no slash."""
        bucket, pattern = split(path)
        parts = pattern.split("/")
        fixed = list(itertools.takewhile(lambda part: not set(part) & set("*?["), parts))
        top, rest = "/".join([f"{SCHEME}{bucket}", *fixed]), parts[len(fixed) :]
        cut = {tuple(name.split("/")[: len(rest)]) for name in names(top)}
        found = [each for each in cut if len(each) == len(rest) and all(map(fnmatch.fnmatchcase, each, rest))]
        return [f"{top}/{'/'.join(each)}" for each in sorted(found) if each[-1]]

    def walk(self, top, *, top_down=True, on_error=None):
        """(folder, names of folders, names of files) for a folder and all in it."""
        folders: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for name in names(top):
            above, (*parts, file) = "", name.split("/")
            for part in parts:
                folders[above][0].add(part)
                above = f"{above}/{part}".lstrip("/")
                folders.setdefault(above, (set(), set()))
            if file:
                folders[above][1].add(file)
        for folder in sorted(folders, reverse=not top_down):
            inside, files = folders[folder]
            yield os.path.join(os.fspath(top), folder).rstrip("/"), sorted(inside), sorted(files)

    def makedirs(self, path, *, exist_ok=False, mode=None):
        """An empty object marks the folder."""
        if not self.isdir(path):
            ask(path, lambda store, name: store.write(f"{name}/", b""))
        elif not exist_ok:
            raise FileExistsError(errno.EEXIST, "exists", os.fspath(path))

    mkdir = makedirs

    def rmtree(self, path):
        """Deletes a folder with all in it, or an object."""
        if not self.exists(path):
            raise _missing(path)
        ask(path, lambda store, name: store.delete_range(_below(name)))
        ask(path, lambda store, name: store.write(name, None))

    def remove(self, path):
        """Deletes an object."""
        if not is_object(path):
            raise _missing(path)
        ask(path, lambda store, name: store.write(name, None))

    def rename(self, path, dst):
        """Moves an object."""
        self.copy(path, dst, False)
        self.remove(path)

    def replace(self, path, dst):
        """Moves an object to where another may be."""
        self.copy(path, dst, True)
        self.remove(path)

    def copy(self, path, dst, overwrite):
        """Copies an object."""
        found = read(path)
        if found is None:
            raise _missing(path)
        if not overwrite and self.exists(dst):
            raise FileExistsError(errno.EEXIST, "exists", os.fspath(dst))
        put(dst, found[0])

    def stat(self, path):
        """Nothing but whether it is a folder: tensorstore tells no size."""
        if not self.exists(path):
            raise _missing(path)
        return stat_utils.StatResult(self.isdir(path), 0, 0)


@epath.register_path_cls(SCHEME)
class BucketPath(gpath.PosixGPath):
    """`gs://BUCKET/NAME` as a path."""

    _backend = BucketBackend()

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self


def _missing(path: str | os.PathLike[str]) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is no such object", os.fspath(path))
