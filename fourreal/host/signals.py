"""SIGTERM and Ctrl-C as a request that training stops between two steps, in all processes after the same one."""

import signal
from typing import Any

from jax.experimental import multihost_utils

from fourreal.host.processes import ALONE, Peers


class StopSignal:
    """Notes SIGTERM and the first Ctrl-C, so that the loop can save and stop between two steps.

    The second Ctrl-C stops at once, and so do both before training, when there is nothing to save. Among several processes
    JAX hears the SIGTERM of each and finds the step after which all can stop; the first step, if it comes before training.
    """

    def __init__(self, peers: Peers = ALONE):
        self._alone = peers.count == 1

    def __enter__(self) -> "StopSignal":
        self.asked = self.interrupted = self.training = self._stopping = False
        noted = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
        self._before = {sign: signal.signal(sign, self._note) for sign in noted}
        return self

    def reached(self, steps: int) -> bool:
        """Whether to stop now; asked once after every step of this training, `steps` so far. Once it is so, it stays so."""
        if self._alone:
            return self.asked
        self._stopping = self._stopping or multihost_utils.reached_preemption_sync_point(steps)
        return self._stopping

    def _note(self, sign: int, _: Any) -> None:
        if sign == signal.SIGINT and (self.interrupted or not self.training):
            raise KeyboardInterrupt
        if not self.training:
            raise SystemExit(128 + sign)
        self.asked, self.interrupted = True, sign == signal.SIGINT
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)  # which JAX tells the others

    def __exit__(self, *_: Any) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)
