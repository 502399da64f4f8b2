"""How fast a run goes and what its time goes into, for `speed.jsonl`: by step, by host, and since the run began.

    mfu       = FLOPs of the model, without what is computed again / (time * peak of the chips in bfloat16)
    goodput   = time of the steps that count / time since the run began; what is neither that nor one of the other causes was
                lost: steps that a kill undid, and waiting to be started again

A resumed run goes on with the sums of the last line before its checkpoint.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax

from fourreal.host.processes import Peers
from fourreal.parallel.chips import GIB, chip_of
from fourreal.training.log import SPEED, MetricsWriter, read_metrics
from fourreal.training.wandb import WandbLog

CAUSES = ("training", "validation", "saving", "starting")


class Pace:
    """Sums the seconds of a run by cause. `lap` at every change of what the process does, `log` after some steps."""

    def __init__(
        self,
        folder: Path,
        peers: Peers,
        done: int,
        since: float | None = None,
        clock: Callable[[], float] = time.time,
        also: WandbLog | None = None,
    ):
        """Goes on after `done` steps with the log in a run's folder; `since`: when this process began, None: now."""
        self._also = also
        self._clock, self._peers, self._last = clock, peers, clock() if since is None else since
        self._folder, self.all_waited = folder, 0.0
        self._go_on(done)

    def _go_on(self, done: int) -> None:
        before = [line for line in read_metrics(self._folder / SPEED) if line["step"] <= done] if done else []
        kept = before[-1] if before else {}
        self._began = kept.get("began", self._last)
        self._sums = {cause: kept.get(f"seconds/{cause}", 0.0) for cause in CAUSES}
        self._writer = MetricsWriter(self._folder, done, SPEED, self._also) if self._peers.first else None
        self._forget()

    def go_back(self, done: int) -> None:
        """The steps after `done` are undone, and their time is lost. All processes call it."""
        self.close()
        self._peers.exchange("closed")
        self._last = self._clock()
        self._go_on(done)

    def _forget(self) -> None:
        self._logged, self._waited = self._sums["training"], 0.0
        self._steps, self._tokens, self._flops = 0, 0, 0

    def lap(self, cause: str) -> None:
        """The time since the last lap went into this."""
        now = self._clock()
        self._sums[cause] += now - self._last
        self._last = now

    def waited(self, seconds: float) -> None:
        """Of the time of a step so much went by until its batch was there."""
        self._waited += seconds
        self.all_waited += seconds

    def step(self, tokens: int, flops: int) -> None:
        """A step of so many tokens and FLOPs of the model, on all devices, has ended."""
        self.lap("training")
        self._steps, self._tokens, self._flops = self._steps + 1, self._tokens + tokens, self._flops + flops

    def log(self, number: int) -> None:
        """Writes the means of the steps since the last time, after step `number`. All processes call it."""
        seconds = max(self._sums["training"] - self._logged, 1e-9)
        own = {"step_seconds": seconds / self._steps, "data_seconds": self._waited / self._steps, **device_memory()}
        hosts = self._peers.exchange("pace", own)
        if self._writer:
            values: dict[str, Any] = {}
            for name in own:
                each = [host[name] for host in hosts]
                values[f"speed/{name}"] = median(each)
                if len(hosts) > 1:
                    values |= {f"speed/{name}_min": min(each), f"speed/{name}_max": max(each)}
            values["speed/tokens_per_second"] = self._tokens / seconds
            if chip := chip_of(jax.devices()[0].device_kind):
                peak = len(jax.devices()) * chip.flops / chip.devices
                values["speed/mfu"] = self._flops / seconds / peak
            elapsed = max(self._clock() - self._began, 1e-9)
            shares = {f"goodput/{cause}": spent / elapsed for cause, spent in self._sums.items()}
            values |= shares | {"goodput/lost": max(0.0, 1 - sum(shares.values()))}
            values |= {f"seconds/{cause}": spent for cause, spent in self._sums.items()} | {"began": self._began}
            self._writer.write(number, values)
        self._forget()

    def close(self) -> None:
        """Closes the log."""
        if self._writer:
            self._writer.close()


def device_memory() -> dict[str, float]:
    """The most memory that one of this host's devices has held, in GiB; nothing where they do not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    held = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    return {"device_gib": max(held) / GIB} if held else {}
