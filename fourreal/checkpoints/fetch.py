"""Weights in a bucket: a copy in this user's cache folder, `~/.cache/fourreal`, made once for each state of them.

The newest two states of a folder stay: a process may still read the one before.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from fourreal.checkpoints.weights import CONFIG, WEIGHTS
from fourreal.errors import MissingFile
from fourreal.host.folders import run_path, whole_folder

KEPT = 2  # states of a folder


def fetched(name: str | Path, inside: str) -> Path:
    """A copy of a folder of weights in a bucket, or of that in its folder `inside`. Raises MissingFile where there is none."""
    from fourreal.host.bucket import generation, names, read

    folder = run_path(name)
    files = [file for file in names(folder) if file.endswith((".json", ".safetensors"))]
    begin = next((begin for begin in ("", f"{inside}/") if {begin + CONFIG, begin + WEIGHTS} <= {*files}), None)
    if begin is None:
        raise MissingFile(f"there are no weights in {name}: a run writes them with its first checkpoint")
    files = [file for file in files if file.startswith(begin)]
    source = f"{folder}/{begin}".rstrip("/")
    state = "\n".join(f"{file.removeprefix(begin)} {generation(folder / file)!r}" for file in files)
    source, state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (source, state))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fourreal"
    out = cache / f"{source}-{state}"
    if not out.is_dir():
        with whole_folder(out) as building:
            for file in files:
                path = building / file.removeprefix(begin)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(read(folder / file)[0])
        with contextlib.suppress(FileNotFoundError):  # another process deletes them, too
            for older in sorted(cache.glob(f"{source}-*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(older, ignore_errors=True)
    return out
