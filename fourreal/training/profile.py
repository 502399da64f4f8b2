"""A trace of a few steps by JAX's profiler, for TensorBoard's profile plugin or xprof."""

from pathlib import Path
from typing import Any

import jax

SETTLED = 10  # steps of a process before the trace: the first ones wait for data and caches


class Profile:
    """Traces `steps` steps of a process whose first is `first`, into a folder; nothing where `steps` is 0."""

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._steps = folder, steps
        self._begin = first + SETTLED
        self._running = False

    def before(self, number: int) -> None:
        """Called before a step."""
        if self._steps and number == self._begin:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, number: int, result: Any) -> None:
        """Called after a step was dispatched; waits for the last one's `result`."""
        if self._running and number == self._begin + self._steps - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that the run's end cuts short."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
