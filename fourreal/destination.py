"""Folders that commands write: whether one can be made is found out before the work, and it appears whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


@contextmanager
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
