"""Paired bootstrap by grid: is one method's mean score above another's on the same grids, or is it chance?

Pixels and cells of one grid are anything but independent, so the unit is the grid: differences of two methods are taken
grid by grid, the grids are drawn with replacement 10,000 times, and the 2.5th and 97.5th percentiles of the mean
difference are the 95 % interval. The draws are fixed by a seed: the same scores give the same interval. Under six grids
there is none: even if all differences have one sign, chance does that in more than 5 % of cases (2 / 2^5).
"""

import math

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
SEED = 0
FEWEST = 6  # grids


def mean_difference(ours: Float[np.ndarray, "grid"], theirs: Float[np.ndarray, "grid"]) -> tuple[float, float, float]:
    """Mean of `ours - theirs` and its 95 % interval, over the grids where both are numbers.

    All nan without such a grid; under six, the interval is nan.
    """
    differences = ours - theirs
    differences = differences[np.isfinite(differences)]
    count = len(differences)
    if count < FEWEST:
        return float(differences.mean()) if count else math.nan, math.nan, math.nan
    draws = np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(differences[draws].mean(axis=1), (2.5, 97.5))
    return float(differences.mean()), float(low), float(high)
