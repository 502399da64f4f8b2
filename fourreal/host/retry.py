"""Reading again where a read fails: a disk or a network that does not answer often does so seconds later. So with a bucket.

Each failure prints a line to stderr; the last one is raised, and ends the process with exit code 3 (see `errors.py`).
"""

import errno
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fourreal.errors import FAULTS, one_line

T = TypeVar("T")

PAUSES = (1, 2, 4, 8, 16)  # seconds between the tries
# How safetensors, tensorstore and ArrayRecord tell of a system's error.
TOLD = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'|\w\(\) failed: ([^;]+)")
# How tensorstore tells of a bucket that does not answer, or refuses to.
NO_ANSWER = re.compile(r"retry attempts failed|UNAVAILABLE|DEADLINE_EXCEEDED|http_response_code='(4(01|03|29)|5\d\d)'")
NUMBERS = {os.strerror(number): number for number in FAULTS}


def read_again(read: Callable[[], T], pauses: tuple[float, ...] | None = None, doing: str = "reading") -> T:
    """What `read` returns; where it fails by a fault, it is called again after each of the pauses (None: PAUSES).

    Raises the last fault as OSError, and any other error at once. `doing` is the word for it in the lines.
    """
    for pause in (*(PAUSES if pauses is None else pauses), None):
        try:
            return read()
        except Exception as error:
            number = errno_of(error)
            if number not in FAULTS:
                raise
            fault = error if isinstance(error, OSError) and error.errno else OSError(number, one_line(error))
            if pause is None:
                raise fault from error.__cause__
        print(f"{one_line(fault)}: {doing} again in {pause:g} s", file=sys.stderr, flush=True)
        time.sleep(pause)


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex, read again where that fails."""

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return read_again(digest)


def errno_of(error: BaseException | None) -> int | None:
    """The system's number of what an error came of, which libraries give only in their texts; None where it is not known."""
    while error is not None:
        told = TOLD.search(str(error))
        number = getattr(error, "errno", None) or (told and (int(told[1] or told[2] or 0) or NUMBERS.get(told[3])))
        if number:
            return number
        if NO_ANSWER.search(str(error)):
            return errno.EHOSTUNREACH
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
