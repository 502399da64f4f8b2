"""Which clips are compared with which, that each is looked at once, and what is told of it."""

import numpy as np
import pytest

from fourreal.evaluation.evaluate import EvaluationGrid, given_cells
from fourreal.evaluation.fvd import (
    REAL,
    ClipDistance,
    KeptFeatures,
    clip_distances,
    fvd_section,
    fvd_text,
    unknown_clips,
)
from fourreal.metrics.clip_sets import frechet_distance, kernel_distance

VIEWS, TIMES = 3, 4
GIVEN = given_cells("view_and_time", VIEWS, TIMES)
TRUTHS = np.random.default_rng(0).integers(0, 256, (5, VIEWS, TIMES, 4, 4, 3), dtype=np.uint8)
GRIDS = [EvaluationGrid(truth, GIVEN) for truth in TRUTHS]


class Means:
    """In place of I3D: 400 numbers made of the mean colour of every clip; counts the clips."""

    def __init__(self):
        self.seen = 0

    def __call__(self, clips):
        self.seen += len(clips)
        return np.cos(clips.mean((1, 2, 3)) @ np.random.default_rng(1).normal(size=(3, 400)) / 100).astype(np.float32)


def test_clips_with_an_unknown_cell_are_those_of_one_time_of_one_view_and_the_diagonal():
    frames = TRUTHS[0]
    found = unknown_clips(frames, GIVEN)
    np.testing.assert_array_equal(found["freeze-time"], [frames[:, t] for t in (1, 2, 3)])
    np.testing.assert_array_equal(found["fixed-view"], frames[1:])
    np.testing.assert_array_equal(found["diagonal"], [[frames[0, 0], frames[1, 1], frames[2, 2]]])
    only = np.ones_like(GIVEN)
    only[1, 3] = False
    assert {form: len(clips) for form, clips in unknown_clips(frames, only).items()} == {
        "freeze-time": 1,
        "fixed-view": 1,
    }
    assert [*unknown_clips(frames[:1], GIVEN[:1] & False)] == ["fixed-view"]  # of one view, the others have one frame


def test_methods_are_compared_with_the_truth_of_their_scenes_and_real_clips_by_halves_of_the_scenes():
    features = Means()
    found = clip_distances({"dark": lambda grid: grid.truth // 2, "right": lambda grid: grid.truth}, GRIDS, features)
    by_place = {(one.method, one.form): one for one in found}
    x = np.concatenate([features(truth[1:] // 2) for truth in TRUTHS])
    y = np.concatenate([features(truth[1:]) for truth in TRUTHS])
    scenes = np.repeat(np.arange(5), VIEWS - 1)
    dark = by_place["dark", "fixed-view"]
    assert dark.clips == 10 and by_place["dark", "freeze-time"].clips == 15 and by_place["dark", "diagonal"].clips == 5
    assert dark.fvd == pytest.approx(frechet_distance(x, y), abs=1e-4)
    assert dark.kvd == pytest.approx(kernel_distance(x, y, scenes, scenes), abs=1e-4)
    assert by_place["right", "diagonal"] == ClipDistance("right", "diagonal", 5, 0, 0)
    even = np.isin(scenes, (0, 2, 4))
    real = by_place[REAL, "fixed-view"]
    assert real.clips == 4 and real.fvd == pytest.approx(frechet_distance(y[even], y[~even]), abs=1e-4)
    assert real.kvd == pytest.approx(kernel_distance(y[even], y[~even], scenes[even], scenes[~even]), abs=1e-4)


def test_a_clip_is_looked_at_once_and_not_again_after_a_kill(tmp_path):
    path, first, second = tmp_path / "features.bin", Means(), Means()
    clips = np.concatenate([TRUTHS[0], TRUTHS[0, ::-1]])
    features = KeptFeatures(path, first)(clips)
    np.testing.assert_array_equal(features, first(clips))
    assert first.seen == VIEWS + len(clips)
    path.write_bytes(path.read_bytes()[:-100])  # a kill within the last clip's record
    again = KeptFeatures(path, second)
    np.testing.assert_array_equal(again(clips), features)
    assert second.seen == 1
    np.testing.assert_array_equal(KeptFeatures(path, second)(clips), features)
    assert second.seen == 1


def test_text_and_page_say_what_is_compared_and_that_few_clips_bias_the_frechet_distance():
    few = [ClipDistance(REAL, "diagonal", 2, 80.123, None), ClipDistance("a <b>, 4 steps", "diagonal", 5, 7.26, -1.34)]
    lines = fvd_text(few).splitlines()
    assert [line.split()[-3:] for line in lines[:3]] == [["diagonal"] * 3, ["clips", "FVD", "KVD"], ["2", "80.1", "-"]]
    assert lines[3].split() == ["a", "<b>,", "4", "steps", "5", "7.3", "-1.3"] and "Under 256 clips" in lines[4]
    page = fvd_section(few)
    assert "a &lt;b&gt;, 4 steps" in page and "Under 256 clips" in page
    assert "Under" not in fvd_text([ClipDistance("many", "diagonal", 256, 7.0, 1.0)])
