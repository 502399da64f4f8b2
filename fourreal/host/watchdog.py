"""Says where a process stands when nothing moves: a hang of one process among many names itself.

`watchdog.at(step, phase)` costs two assignments; a thread looks at them and prints one line once they are too old.
"""

import sys
import threading
import time

from tqdm import tqdm


class Watchdog:
    """Prints a line to stderr after `minutes` without progress, then at twice, four times ... that time; 0: never.

    A context: it watches inside, from the first `at` on.
    """

    def __init__(self, minutes: float, name: str):
        self._seconds, self._name = 60 * minutes, name
        self._now = (0, "starting", time.monotonic())
        self._closed = threading.Event()

    def at(self, step: int, phase: str) -> None:
        """Progress: this phase of this step begins."""
        self._now = (step, phase, time.monotonic())

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        seen, limit = self._now, self._seconds
        while not self._closed.wait(max(0.01, min(seen[2] + limit - time.monotonic(), self._seconds / 4))):
            if self._now is not seen:
                seen, limit = self._now, self._seconds
                continue
            step, phase, began = seen
            if (elapsed := time.monotonic() - began) >= limit:
                line = f"{self._name}: no progress for {elapsed / 60:.3g} min; step {step}, {phase}"
                tqdm.write(line, file=sys.stderr)
                sys.stderr.flush()
                limit *= 2
