"""Means, deviations and marks of rows whose scores are known."""

import numpy as np
import pytest

from fourreal.evaluation.evaluate import BASELINE
from fourreal.evaluation.summary import summarise
from fourreal.evaluation.tables import text_table
from fourreal.metrics.baselines import COPIES

GRIDS = 8
LEVELS = np.random.default_rng(0).normal(20, 3, GRIDS)  # grids differ more than methods
ALTERNATING = np.tile([0.5, -0.5], GRIDS // 2)


def row(psnr, gradient=1.0, lpips=0.2, cells=((None, 20.0),)):
    """Scores of one seed: a PSNR for each grid, the rest the same for all."""
    return [
        [{"psnr_all": float(value), "gradient_all": gradient, "lpips_alex": lpips, "cells": cells}] for value in psnr
    ]


@pytest.fixture
def table():
    two_seeds = [[*ours, *theirs] for ours, theirs in zip(row(LEVELS + 1), row(LEVELS + 3), strict=True)]
    return {
        (BASELINE, COPIES[0]): row(LEVELS),
        (BASELINE, COPIES[1]): row(LEVELS - 2, lpips=0.1),
        ("a", "4 steps"): two_seeds,
        ("a", "1 step"): row(LEVELS + ALTERNATING, gradient=0.8, lpips=0.05),
        ("a", "best of 8 samples"): row(LEVELS[:6] + 4),
    }


def values(parts, part, name):
    return next(row for row in parts[part].rows if row.name == name).values


def test_marks_say_better_and_worse_than_the_best_copy_of_that_metric(table):
    parts = summarise(table)
    assert parts[0].best_copy == {"psnr_all": COPIES[0], "gradient_all": COPIES[0], "lpips_alex": COPIES[1]}
    verdicts = {
        name: {key: value.verdict for key, value in values(parts, 0, name).items()} for name in ("1 step", COPIES[0])
    }
    # PSNR above on one half of the grids and below on the other; a gradient below 1 and a smaller distance
    assert verdicts["1 step"] == {"psnr_all": "", "gradient_all": "worse", "lpips_alex": "better"}
    assert verdicts[COPIES[0]] == {"psnr_all": "", "gradient_all": "", "lpips_alex": "worse"}
    assert values(parts, 0, "4 steps")["psnr_all"].verdict == "better"


def test_mean_and_deviation_are_over_grids_and_over_seeds(table):
    value = values(summarise(table), 0, "4 steps")["psnr_all"]
    assert value.mean == pytest.approx(LEVELS.mean() + 2, abs=1e-6)
    assert value.deviation == pytest.approx(2**0.5)  # of 1 and 3
    assert (value.difference, value.low, value.high) == pytest.approx((2, 2, 2))
    assert values(summarise(table), 0, "1 step")["psnr_all"].deviation is None


def test_rows_over_fewer_grids_stand_apart_with_copies_and_samples_on_the_same_grids(table):
    parts = summarise(table)
    assert [(part.grids, [row.name for row in part.rows]) for part in parts] == [
        (8, [*COPIES, "4 steps", "1 step"]),
        (6, [*COPIES, "4 steps", "best of 8 samples"]),
    ]
    assert values(parts, 1, COPIES[0])["psnr_all"].mean == pytest.approx(LEVELS[:6].mean(), abs=1e-6)
    assert parts[0].rows[0].cells == [[None, 20.0]]


def test_metrics_without_pixels_are_left_out_of_means_and_shown_as_a_dash(table):
    table["a", "1 step"] = row(LEVELS)
    for key in table:
        for seeds in table[key]:
            for score in seeds:
                score["gradient_all"] = None
    parts = summarise(table)
    value = values(parts, 0, "1 step")["gradient_all"]
    assert (value.mean, value.low, value.verdict) == (None, None, "")
    assert "a, 1 step" in text_table(parts) and " - " in text_table(parts)
