"""A trace of a few steps by JAX's profiler, for TensorBoard's profile plugin or xprof: as the config says, or on a signal."""

import signal
from pathlib import Path
from typing import Any

import jax

SETTLED = 10  # steps of a process before the trace: the first ones wait for data and caches
ON_SIGNAL = 3  # steps that a SIGUSR1 asks for where the config asks for none


class Profile:
    """Traces `steps` steps of a process whose first is `first`, into a folder; and, on every SIGUSR1, the next ones."""

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._steps = folder, steps or ON_SIGNAL
        self._begin = first + SETTLED if steps else None
        self._running = self._asked = False
        self._before = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def before(self, number: int) -> None:
        """Called before a step."""
        if self._asked and not self._running:
            self._begin, self._asked = number, False
        if number == self._begin:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, number: int, result: Any) -> None:
        """Called after a step was dispatched; waits for the last one's `result`."""
        if self._running and number == self._begin + self._steps - 1:
            jax.block_until_ready(result)
            self._stop()

    def close(self) -> None:
        """Ends a trace that the run's end cuts short, and listens no more."""
        self._stop()
        signal.signal(signal.SIGUSR1, self._before)

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
