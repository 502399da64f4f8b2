"""One writer of a folder in a bucket: a lease, an object that its holder renews.

    taken      written where there is none, or over one that has expired; the store lets one of several writers do it
    renewed    every tenth of its time, only over what the holder itself has written
    expired    its holder is dead, on this machine, or the object has stayed the same for its whole time
    lost       somebody else's, or not renewed for two thirds of its time: its holder ends at once, with exit code 3

Nobody compares two clocks: who waits for it to expire watches the object by a clock of its own. All that is assumed is that
clocks run at the same speed, within a third. What a process that was stopped for longer wrote meanwhile is no checkpoint:
the lease is renewed before each seal.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from fourreal.errors import LOST, UserError
from fourreal.host.bucket import BucketPath, read, write
from fourreal.host.folders import LEASE
from fourreal.host.processes import exit_at_once

ALL_SECONDS = 180.0
VARIABLE = "FOURREAL_LEASE_SECONDS"


class Lease:
    """That of a folder, held; `lost` is called with a line when it is not any more, and does not return."""

    def __init__(self, folder: BucketPath, seconds: float, lost: Callable[[str], None]):
        """Takes it. Raises UserError while another process holds it."""
        self._path, self._folder, self._seconds, self._lost = folder / LEASE, folder, seconds, lost
        self._me = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid(), "machine": machine()}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._count, self._generation = 0, None
        while not self._write():
            self._wait()
        for work in (self._keep, self._watch):
            threading.Thread(target=work, daemon=True, name="lease").start()

    def _write(self) -> bool:
        """Writes it over what was last seen there; whether it is this process's now, also where the answer got lost."""
        asked = time.monotonic()
        self._count += 1
        text = json.dumps({**self._me, "seconds": self._seconds, "renewed": self._count})
        found = write(self._path, text.encode(), over=self._generation)
        if found is None:
            there = read(self._path)
            if there is None or parse(there[0])["id"] != self._me["id"]:
                return False
            found = there[1]
        self._generation, self._renewed = found, asked
        return True

    def _wait(self) -> None:
        """Returns once the lease that is there may be written over. Raises UserError if it is renewed."""
        began, first = time.monotonic(), None
        while (found := read(self._path)) is not None:
            self._generation, holder = found[1], parse(found[0])
            who, left = f"{holder['host']}, process {holder['process']}", began + holder["seconds"] - time.monotonic()
            if is_dead(holder):
                return
            if first is None:
                print(f"{self._folder} is held by {who}: looking for up to {left:.0f} s whether it goes on", flush=True)
                first = self._generation
            if self._generation != first:
                raise UserError(
                    f"another process is training in {self._folder} ({who}): wait for it, or give another --out"
                )
            if left <= 0:
                return
            time.sleep(min(1.0, holder["seconds"] / 20))
        self._generation = None

    def renew(self) -> None:
        """Renews it now. Raises OSError where the bucket does not answer."""
        with self._lock:
            if not self._closed.is_set() and not self._write():
                self._lose("another process has taken it over")

    def _keep(self) -> None:
        """A thread that renews it."""
        while not self._closed.wait(self._seconds / 10):
            with contextlib.suppress(OSError, UserError):  # tried again; the other thread looks how long
                self.renew()

    def _watch(self) -> None:
        """A thread that ends the process in time where it cannot be renewed."""
        while not self._closed.wait(self._seconds / 30):
            if time.monotonic() - self._renewed > self._seconds * 2 / 3:
                self._lose(f"it could not be renewed for {self._seconds * 2 / 3:.0f} s")

    def _lose(self, why: str) -> None:
        self._lost(
            f"the lease of {self._folder} is lost, {why}: start again with --resume where nobody else trains in it"
        )

    def close(self) -> None:
        """Gives it back."""
        self._closed.set()
        with self._lock, contextlib.suppress(OSError, UserError):
            write(self._path, None, over=self._generation)


@contextlib.contextmanager
def leased(folder: BucketPath) -> Iterator[Lease]:
    """Inside, this process alone may write to a folder in a bucket. Raises UserError where another one does."""
    lease = Lease(folder, lease_seconds(), end)
    try:
        yield lease
    finally:
        lease.close()


def lease_seconds() -> float:
    """For how long a lease counts that is not renewed. Raises UserError for what is no such time."""
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or ALL_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e6:
        raise UserError(f"{VARIABLE} is '{given}': give 1 or more seconds")
    return seconds


def end(line: str) -> None:
    """Says so and ends the process."""
    print(f"\nfourreal train: error: {line}", file=sys.stderr)  # on a line of its own, below a progress bar
    exit_at_once(LOST)


def parse(text: bytes) -> dict[str, Any]:
    """What a lease says; one that is broken has a holder whom nobody knows."""
    unknown = {"id": "", "host": "unknown", "process": 0, "machine": "", "seconds": ALL_SECONDS}
    try:
        return unknown | json.loads(text)
    except (ValueError, TypeError):
        return unknown


def machine() -> str:
    """What tells a machine, since it was started, and its processes' numbers from others; empty: not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether a lease is that of a process of this machine that is gone."""
    return (
        bool(holder["machine"]) and holder["machine"] == machine() and not os.path.exists(f"/proc/{holder['process']}")
    )
