"""Files that the system refuses to read with EIO, as a broken disk does: `/proc/self/mem` where a process has no memory."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NOTHING = "/proc/self/mem"


def break_file(path: Path) -> None:
    """Makes reads of a file fail from now on; its content waits beside it."""
    path.rename(path.with_name(f"{path.name}.whole"))
    path.symlink_to(NOTHING)


def mend_file(path: Path) -> None:
    """Takes that back."""
    path.with_name(f"{path.name}.whole").replace(path)


@contextlib.contextmanager
def open_files_broken(folder: Path) -> Iterator[None]:
    """Inside, reads of what this process has open in a folder fail, in whatever library."""
    kept, nothing = {}, os.open(NOTHING, os.O_RDONLY)
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if Path(os.readlink(link)).is_relative_to(folder):
                kept[int(link.name)] = os.dup(int(link.name))
                os.dup2(nothing, int(link.name))
    try:
        yield
    finally:
        os.close(nothing)
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
