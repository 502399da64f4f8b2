"""From the scores of every grid and seed to the rows of the table: means, deviations over seeds, paired intervals.

A row is compared on each metric with the better of the two copies on that metric. It is better or worse than that copy
if the 95 % interval of the mean difference, paired and bootstrapped by grid, leaves out 0. Rows over fewer grids stand
in a part of their own, with the copies and the samples on the same grids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from fourreal.evaluation.evaluate import BASELINE
from fourreal.evaluation.scoring import METRICS, Score, metric_of
from fourreal.metrics.baselines import COPIES
from fourreal.metrics.statistics import mean_difference

Table = Mapping[tuple[str, str], list[list[Score]]]


@dataclass(frozen=True)
class Value:
    """One metric of one row."""

    mean: float | None
    """over grids, of the mean over seeds"""
    deviation: float | None
    """over seeds, of the mean over grids; None with one seed"""
    difference: float | None
    """mean gain over the best copy: above 0 is better, whatever the metric's direction"""
    low: float | None
    high: float | None
    verdict: Literal["better", "worse", ""]


@dataclass(frozen=True)
class Row:
    """One method over some grids."""

    method: str
    name: str
    grids: int
    seeds: int
    values: dict[str, Value]
    cells: list[list[float | None]]
    """mean PSNR of every cell, [v][t], None in given ones"""

    @property
    def label(self) -> str:
        """As it stands in tables."""
        return self.name if self.method == BASELINE else f"{self.method}, {self.name}"


@dataclass(frozen=True)
class Part:
    """Rows over the same grids, and the best copy on each metric."""

    grids: int
    rows: list[Row]
    best_copy: dict[str, str]


def summarise(table: Table) -> list[Part]:
    """One part for all grids and, where there are rows over fewer, one for those."""
    counts = sorted({len(grids) for grids in table.values()}, reverse=True)
    whole = [_part(table, counts[0], [key for key, grids in table.items() if len(grids) == counts[0]])]
    if len(counts) == 1:
        return whole
    methods = dict.fromkeys(method for method, _ in table)
    samples = [next(key for key in table if key[0] == method) for method in methods if method != BASELINE]
    few = [key for key, grids in table.items() if len(grids) == counts[1]]
    keys = [(BASELINE, copy) for copy in COPIES] + [key for key in table if key in samples or key in few]
    return [*whole, _part(table, counts[1], keys)]


def _part(table: Table, count: int, keys: Sequence[tuple[str, str]]) -> Part:
    scored = next(iter(table.values()))[0][0]
    names = [name for name in METRICS if name in scored] + [name for name in scored if ":" in name]
    scores = {key: {name: _array(table[key][:count], name) for name in names} for key in keys}
    quality = {
        key: {name: _mean(metric_of(name).quality(values), axis=1) for name, values in by_metric.items()}
        for key, by_metric in scores.items()
    }

    def best_copy(name: str) -> str:
        means = {copy: _mean(quality[BASELINE, copy][name], axis=0) for copy in COPIES}
        return max(means, key=lambda copy: np.nan_to_num(means[copy], nan=-np.inf))

    best = {name: best_copy(name) for name in names}
    rows = []
    for key in keys:
        values = {
            name: _value(scores[key][name], quality[key][name], quality[BASELINE, best[name]][name]) for name in names
        }
        cells = _mean(_array(table[key][:count], "cells"), axis=(0, 1))
        rows.append(Row(*key, count, len(table[key][0]), values, [[*map(_number, view)] for view in cells]))
    return Part(count, rows, best)


def _value(
    scores: Float[np.ndarray, "grid seed"], ours: Float[np.ndarray, "grid"], best: Float[np.ndarray, "grid"]
) -> Value:
    """A metric of a row from its scores, its quality, and the quality of the best copy."""
    over_seeds = _mean(scores, axis=0)
    difference, low, high = mean_difference(ours, best)
    return Value(
        mean=_number(_mean(_mean(scores, axis=1), axis=0)),
        deviation=_number(np.std(over_seeds, ddof=1)) if len(over_seeds) > 1 else None,
        difference=_number(difference),
        low=_number(low),
        high=_number(high),
        verdict="better" if low > 0 else "worse" if high < 0 else "",
    )


def _array(grids: list[list[Score]], name: str) -> Float[np.ndarray, "grid seed ..."]:
    return np.array([[score[name] for score in seeds] for seeds in grids], dtype=np.float64)


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean of the numbers; nan, without a warning, where there are none."""
    count = np.isfinite(values).sum(axis)
    return np.where(count, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
