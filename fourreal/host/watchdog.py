"""Says where a process stands when nothing moves, and ends one that hangs: a hang of one process among many names itself.

`watchdog.at(step, phase)` costs an assignment; a thread looks at it, prints a line once it is too old, and in the end writes
the stacks of all threads and ends the process, and the others. It asks none of these, which may hang themselves. It counts
its own looks, no clock: a process that was stopped with Ctrl-Z for a night goes on.
"""

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

from tqdm import tqdm

from fourreal.errors import LOST, UserError
from fourreal.host.processes import exit_at_once, write_stacks

LOOKS = 4  # in the shortest of the times


@dataclass(frozen=True)
class HangConfig:
    """Minutes without progress after which a process writes its stacks and ends with exit code 3; 0: never."""

    step: float = 30.0
    """in a step or a batch, and in whatever has no limit of its own"""
    compile: float = 120.0
    """in compiling and in a validation, the first of which compiles, too"""
    save: float = 60.0
    """in a save"""
    restore: float = 60.0
    """in checking checkpoints and restoring one, or in reading the weights that a run starts from"""

    def __post_init__(self):
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise UserError(f"hang.{field.name} is {getattr(self, field.name)}: give 0 or more")

    def minutes(self, phase: str) -> float:
        """The limit of a phase."""
        return getattr(self, LIMITS.get(phase, "step"))


LIMITS = {
    "compiling": "compile",
    "validation": "compile",
    "saving": "save",
    "looking at the run's folder": "restore",
    "restoring": "restore",
    "initializing": "restore",
}


class Watchdog:
    """Prints a line to stderr after `minutes` without progress, then at twice, four times ... that time; 0: never.

    After the minutes of `hang` it writes the stacks of all threads there and ends the process with exit code 3. A context: it
    watches inside.
    """

    def __init__(
        self,
        minutes: float,
        name: str,
        hang: HangConfig = HangConfig(),
        tell: Callable[[str], None] = lambda line: None,
    ):
        """`tell` is called with the line before the process ends."""
        self._seconds, self._name, self._hang, self._tell = 60 * minutes, name, hang, tell
        self._now = (0, "starting")
        self._closed = threading.Event()

    def at(self, step: int, phase: str) -> None:
        """Progress: this phase of this step begins."""
        self._now = (step, phase)

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        seen, elapsed, limit = self._now, 0.0, self._seconds
        times = [self._seconds, *(60 * getattr(self._hang, field.name) for field in fields(self._hang))]
        pause = max(0.01, min(filter(None, times), default=3600) / LOOKS)
        while not self._closed.wait(pause):
            if self._now is not seen:
                seen, elapsed, limit = self._now, 0.0, self._seconds
                continue
            elapsed += pause
            step, phase = seen
            line = f"{self._name}: no progress for {elapsed / 60:.3g} min; step {step}, {phase}"
            if 0 < 60 * self._hang.minutes(phase) <= elapsed:
                end(line, self._tell)
            if 0 < limit <= elapsed:
                tqdm.write(line, file=sys.stderr)
                sys.stderr.flush()
                limit *= 2


def end(line: str, tell: Callable[[str], None]) -> None:
    """Writes the stacks of all threads and the line to stderr, tells it, and ends the process."""
    threading.Timer(20, os._exit, (LOST,)).start()  # where writing hangs, too
    write_stacks()
    line = f"{line}: start all again with --resume"
    print(f"fourreal train: error: {line}", file=sys.stderr)
    tell(line)
    exit_at_once(LOST)
