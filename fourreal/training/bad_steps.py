"""Steps whose numbers are not finite: some are skipped; where there are more, the run goes back and takes other data.

    position of a step's data = step + offset,      offset = all that the run has left out until then

Going back to the checkpoint of c steps after a bad step n leaves out the data of steps c + 1 to n. What was left out, and from
which checkpoint on, stands in the run's folder, so a run that is stopped and goes on takes the same data.
"""

import dataclasses
import json
from pathlib import Path

from fourreal.errors import UserError
from fourreal.host.folders import write_whole
from fourreal.host.processes import ALONE, Peers
from fourreal.serialize import read_json

FILE = "left_out.json"


@dataclasses.dataclass(frozen=True)
class BadStepsConfig:
    """What a run does about steps whose loss, gradient or update is not finite; such a step changes no parameters."""

    skip: int = 10
    """so many are skipped between two checkpoints; after one more the run goes back to its last checkpoint"""
    back: int = 2
    """how often it goes back to one checkpoint, each time with the data behind it left out; after that it stops"""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise UserError(f"bad_steps.{field.name} is {getattr(self, field.name)}: give 0 or more")


class TooManyBad(FloatingPointError):
    """More steps than may be skipped are not finite; the last of them is `step`."""

    def __init__(self, line: str, step: int):
        super().__init__(line)
        self.step = step


class LeftOut:
    """The data that a run has left out, by the checkpoint after which it did; `[[steps, how many batches], ...]` in a file."""

    def __init__(self, folder: Path, resume: bool, peers: Peers = ALONE):
        self._file, self._peers = folder / FILE, peers
        self._entries = peers.of_first("left out", lambda: self._read() if resume else [])

    def _read(self) -> list[list[int]]:
        return read_json(self._file, list) if self._file.is_file() else []

    def __str__(self) -> str:
        return json.dumps(self._entries)

    def offset(self, step: int) -> int:
        """What is added to the number of steps done for the position of the next step's data."""
        return sum(count for after, count in self._entries if after <= step)

    def times(self, step: int) -> int:
        """How often the run has gone back to the checkpoint of so many steps."""
        return sum(after == step for after, _ in self._entries)

    def add(self, step: int, count: int) -> None:
        """After `step` steps, `count` batches more are left out."""
        self._entries.append([step, count])
        self._peers.of_first("leave out", lambda: write_whole(self._file, str(self)))
