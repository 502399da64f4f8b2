"""Where a run's numbers go: `metrics.jsonl` and one file of TensorBoard events in the run's folder.

Both are logs in the order of the steps, and every entry reaches the system before the next step. A resumed run cuts off what
came after its checkpoint and goes on in the same files, so each point is there once, whatever was killed in between. The event
file is written here: tensorboardX's own writer begins a new one for every process and hides failed writes in a thread.
"""

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class MetricsWriter:
    """Appends numbers and pictures by step; a resumed run continues both files, dropping what came after its step."""

    def __init__(self, folder: Path, start_step: int):
        if start_step and not (folder / "metrics.jsonl").is_file():
            print(f"{folder / 'metrics.jsonl'} is missing: it begins anew after step {start_step}")
        (folder / "tensorboard").mkdir(exist_ok=True)
        self._lines = _continued(folder / "metrics.jsonl", _line_ends, start_step)
        self._events = _continued(folder / "tensorboard" / "events.out.tfevents.run", _event_ends, start_step)
        if not self._events.tell():
            self._event(file_version="brain.Event:2")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of numbers after `step` steps (null where there is none); names with a slash are grouped in TensorBoard."""
        from tensorboardX.summary import scalar

        values = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self._lines.flush()
        for name, value in values.items():
            if value is not None:
                self._event(step=step, summary=scalar(name, value))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [h, w, 3], for TensorBoard."""
        from tensorboardX.summary import image

        self._event(step=step, summary=image(name, picture, dataformats="HWC"))

    def _event(self, **content: Any) -> None:
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


def _continued(path: Path, ends: Callable[[bytes], Iterator[tuple[int, int]]], start_step: int) -> BinaryIO:
    """A log open for appending, cut off before its first entry after `start_step`; `ends` gives each entry's (step, end)."""
    kept = 0
    for step, end in ends(path.read_bytes() if path.is_file() else b""):
        if step > start_step:
            break
        kept = end
    path.touch()
    os.truncate(path, kept)
    return open(path, "ab")


def _line_ends(data: bytes) -> Iterator[tuple[int, int]]:
    """Of whole lines; a kill may leave a torn last one."""
    end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            return
        if line.endswith(b"\n"):
            yield step, end


def _event_ends(data: bytes) -> Iterator[tuple[int, int]]:
    """Of whole events: length, its checksum, content, its checksum."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    start = 0
    while start + 12 <= len(data):
        length, check = struct.unpack_from("<QI", data, start)
        end = start + 12 + length + 4
        if check != masked_crc32c(data[start : start + 8]) or end > len(data):
            return
        try:
            yield Event.FromString(data[start + 12 : end - 4]).step, end
        except DecodeError:
            return
        start = end
