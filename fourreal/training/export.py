"""The weights of a run, written beside its loop: what trains each time, a frozen part once, in a file named by its digest."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from fourreal.checkpoints.specs import RUN_WEIGHTS
from fourreal.checkpoints.weights import gather_weights, write_tensors, write_weights
from fourreal.host.processes import ALONE, Peers
from fourreal.models.build import Params
from fourreal.parallel.digest import digests, name_of
from fourreal.training.storage import Storage


class Export:
    """The folder of a run's weights, which one thread of process 0 fills; `config` describes them. All processes call it."""

    def __init__(self, storage: Storage, config: dict[str, Any], peers: Peers = ALONE):
        self._storage, self._folder, self._config, self._peers = storage, storage.work / RUN_WEIGHTS, config, peers
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        self._beside = ""  # the frozen part's file

    def start(self, trained: Params, frozen: Params) -> None:
        """Starts to write; returns once the arrays are copied to the host. Raises OSError if this or the one before fails."""
        self.check(wait=True)
        rest = {}
        if frozen:
            if not self._beside:
                found = digests(frozen)
                self._beside = self._peers.of_first("frozen weights", lambda: f"frozen-{name_of(found)}.safetensors")
            if not self._peers.of_first("written weights", lambda: self._storage.has(f"{RUN_WEIGHTS}/{self._beside}")):
                rest = gather_weights(frozen)
        tensors = gather_weights(trained)
        if self._peers.first:
            self._writing = self._thread.submit(self._write, tensors, rest)

    def _write(self, tensors: dict[str, np.ndarray], rest: dict[str, np.ndarray]) -> None:
        if rest:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._folder / self._beside, rest)
        write_weights(self._folder, tensors, self._config, self._beside)
        self._storage.sync()

    def check(self, wait: bool = False) -> None:
        """Raises OSError if the writing under way has failed; `wait`: waits for it."""
        if self._writing and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for the writing under way; raises OSError if it fails."""
        try:
            self.check(wait=True)
        finally:
            self._thread.shutdown()
