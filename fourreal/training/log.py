"""Where a run's numbers go: `metrics.jsonl` and TensorBoard events in the run's folder; how fast it goes, the same way, to
`speed.jsonl` and events of its own: metrics are the same however often a run was stopped, its speed is not.

Both are logs in the order of the steps, and every entry reaches the system before the next step. A resumed run cuts off what
came after its checkpoint and goes on in the same files, so each point is there once, whatever was killed in between. The event
files are written here: tensorboardX's own writer begins a new one for every process and hides failed writes in a thread. A new
one begins where pictures have made one large: a bucket takes only whole files, so each save sends the newest alone.
"""

import contextlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fourreal.training.wandb import WandbLog

LOG, SPEED = "metrics.jsonl", "speed.jsonl"
EVENTS = "events.out.tfevents.run"
FILE_BYTES = 2**23  # of events, after which a new file begins


class MetricsWriter:
    """Appends numbers and pictures by step; a resumed run continues both files, dropping what came after its step."""

    def __init__(self, folder: Path, start_step: int, log: str = LOG, also: WandbLog | None = None):
        """`also` gets the same numbers and pictures."""
        self._also = also
        if start_step and log == LOG and not (folder / log).is_file():
            print(f"{folder / log} is missing: it begins anew after step {start_step}")
        self._folder = folder / "tensorboard" / ("" if log == LOG else Path(log).stem)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lines, last = _continued(folder / log, _line_ends, start_step)
        files = [_continued(path, _event_ends, start_step)[0] for path in sorted(self._folder.glob(f"{EVENTS}*"))]
        self._number = max((number for number, file in enumerate(files) if file.tell()), default=0)
        for file in files:
            file.close()
        self._events = self._open()
        if last > start_step and log == LOG:
            print(f"the log goes to step {last}: what came after step {start_step} is done again")

    def _open(self) -> BinaryIO:
        """The file of events that is written to; those after it, if any, are empty."""
        return open(self._folder / (f"{EVENTS}.{self._number:05d}" if self._number else EVENTS), "ab")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of numbers after `step` steps (null where there is none); names with a slash are grouped in TensorBoard."""
        from tensorboardX.summary import scalar

        values = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self._lines.flush()
        for name, value in values.items():
            if value is not None:
                self._event(step=step, summary=scalar(name, value))
        if self._also:
            self._also.write(step, values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [h, w, 3], for TensorBoard."""
        from tensorboardX.summary import image

        self._event(step=step, summary=image(name, picture, dataformats="HWC"))
        if self._also:
            self._also.picture(step, name, picture)

    def _event(self, **content: Any) -> None:
        if self._events.tell() > FILE_BYTES:
            os.fsync(self._events.fileno())
            self._events.close()
            self._number += 1
            self._events = self._open()
        if not self._events.tell():
            self._record(file_version="brain.Event:2")
        self._record(**content)

    def _record(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._events.write(length + checks[0] + data + checks[1])
        self._events.flush()

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        for file in (self._lines, self._events):
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._lines.close()
        self._events.close()


def _continued(path: Path, ends: Callable[[bytes], Iterator[tuple[int, int]]], start_step: int) -> tuple[BinaryIO, int]:
    """(a log open for appending, cut off before its first entry after `start_step`; the last step it had).

    `ends` gives each whole entry's (step, end). What is broken before an entry that stays, stays with it.
    """
    entries = list(ends(path.read_bytes() if path.is_file() else b""))
    kept = max((end for step, end in entries if step <= start_step), default=0)
    if path.is_file() and path.stat().st_size > kept:  # one that stays as it is need not go to a bucket again
        os.truncate(path, kept)
    return open(path, "ab"), max((step for step, _ in entries), default=0)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The numbers that a run wrote, a dict a line; without lines that a kill or somebody broke. [] where there is no file."""
    return [values for values, _ in _whole_lines(path.read_bytes())] if path.is_file() else []


def _whole_lines(data: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """(numbers, end) of every line that is whole and names its step."""
    end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if line.endswith(b"\n") and isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values, end


def _line_ends(data: bytes) -> Iterator[tuple[int, int]]:
    return ((values["step"], end) for values, end in _whole_lines(data))


def _event_ends(data: bytes) -> Iterator[tuple[int, int]]:
    """(step, end) of every whole event: length, its checksum, content, its checksum. Behind a broken length none is found, and
    the one that names the format is no entry."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    start = 0
    while start + 12 <= len(data):
        length, check = struct.unpack_from("<QI", data, start)
        content, end = data[start + 12 : start + 12 + length], start + 12 + length + 4
        if check != masked_crc32c(data[start : start + 8]) or end > len(data):
            return
        if struct.unpack_from("<I", data, end - 4) == (masked_crc32c(content),):
            event = Event.FromString(content)
            if not event.file_version:
                yield event.step, end
        start = end
