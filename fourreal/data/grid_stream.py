"""Renders the grids of a split in several processes, in an order that does not depend on how many there are.

Scene numbers 0, 1, 2, ... are the candidates of a split. They are rendered side by side and judged in order; the first
`count` that pass are the split, and the reasons why others did not are counted.
"""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourreal.data.assets import Assets
from fourreal.data.render import check_shape, render_scene
from fourreal.data.scenes import sample_scene
from fourreal.evaluation.metrics import moving_mask

LEAST_MOVING = 0.03
LEAST_SUBJECT = 0.05
MOST_CUT = 0.1
LEAST_BRIGHTNESS = 20.0


MOST_WORKERS = 256


@dataclass(frozen=True)
class GridRequest:
    """The grids of one split: shape, seed, and the folder of assets (None: the bundled ones)."""

    split: str
    views: int
    times: int
    size: int
    seed: int
    assets: Path | None = None

    def __post_init__(self):
        check_shape(self.views, self.times, self.size)
        if self.times < 2:
            raise ValueError("a grid of 1 time cannot move: choose at least 2 times")


def moving_share(frames: np.ndarray) -> float:
    """The share of pixels of uint8 [v, t, h, w, 3] that move: see `evaluation/metrics.py`."""
    return float(moving_mask(frames).mean())


def flaw(grid: dict[str, np.ndarray]) -> str | None:
    """Why a grid is not worth keeping: `still`, `small`, `cut` (a subject at the border), `dark`, or None."""
    subject = grid["subject"].astype(bool)
    if moving_share(grid["frames"]) < LEAST_MOVING:
        return "still"
    if subject.mean() < LEAST_SUBJECT:
        return "small"
    edge = np.concatenate([subject[..., 0, :], subject[..., -1, :], subject[..., :, 0], subject[..., :, -1]], -1)
    if edge.any(-1).mean() > MOST_CUT:
        return "cut"
    if grid["frames"][subject].mean() < LEAST_BRIGHTNESS:
        return "dark"
    return None


class GridStream:
    """Iterates over the first `count` good grids of a request; `rejected` counts the others by flaw as it goes."""

    def __init__(self, request: GridRequest, count: int, workers: int = 1):
        if count < 0 or not 1 <= workers <= MOST_WORKERS:
            raise ValueError(
                f"{count} grids in {workers} processes cannot be: grids >= 0 and 1 to {MOST_WORKERS} workers"
            )
        self.request, self.count, self.workers = request, count, workers
        self.rejected: collections.Counter = collections.Counter()

    def __iter__(self) -> Iterator[dict]:
        self.rejected.clear()
        kept = 0
        candidates = self._candidates()
        try:
            while kept < self.count:
                grid, reason = next(candidates)
                if reason:
                    self.rejected[reason] += 1
                    if sum(self.rejected.values()) > 20 * (kept + 20):
                        raise ValueError(f"nearly every grid is rejected ({dict(self.rejected)}): check the assets")
                    continue
                yield {**grid, "index": np.int64(kept)}
                kept += 1
        finally:
            candidates.close()

    def _candidates(self) -> Iterator[tuple[dict, str | None]]:
        if self.workers == 1:
            yield from (_render(self.request, index) for index in itertools.count())
        # spawn: a forked copy of a process that has drawn with Panda3D does not work
        context = multiprocessing.get_context("spawn")
        for library in ("OMP", "OPENBLAS", "MKL"):  # a process a core: more threads would only wait for each other
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
        with concurrent.futures.ProcessPoolExecutor(self.workers, context, _leave_with_parent) as pool:
            indices = itertools.count()
            waiting = collections.deque(
                pool.submit(_render, self.request, next(indices)) for _ in range(3 * self.workers)
            )
            try:
                while True:
                    result = waiting.popleft().result()
                    waiting.append(pool.submit(_render, self.request, next(indices)))
                    yield result
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _leave_with_parent() -> None:
    """Ends this process when the one that started it is gone: one that is killed does not shut its pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the others

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render(request: GridRequest, index: int) -> tuple[dict, str | None]:
    assets = _assets(request.assets)
    scene = sample_scene(request.seed, request.split, index, assets)
    grid = render_scene(scene, request.views, request.times, request.size, assets)
    reason = flaw(grid)
    return ({} if reason else {**grid, "scene": scene.as_json()}), reason


@functools.cache
def _assets(folder: Path | None) -> Assets:
    """Opens a folder of assets once a process."""
    return Assets(folder)
