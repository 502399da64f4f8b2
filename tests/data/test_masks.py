"""The masks of training: how often each kind comes, and that something is always left to generate."""

from dataclasses import fields, replace

import numpy as np
import pytest

from fourreal.data.masks import CLIPS, CutMix, MaskMix, sample_given

ISSUE_MIX = {
    "view_and_time": 0.30,
    "fixed_view": 0.15,
    "freeze_time": 0.10,
    "some_views": 0.15,
    "one_cell": 0.10,
    "random_cells": 0.10,
    "borders": 0.05,
    "none": 0.05,
}


def only(kind: str) -> MaskMix:
    """A mix that draws nothing but one kind."""
    return MaskMix().alone()[kind]


def test_kinds_of_a_mix_alone_draw_nothing_else_and_those_of_no_weight_are_left_out():
    alone = MaskMix(none=0.0, view_and_time=3.0).alone()
    assert set(alone) == {field.name for field in fields(MaskMix)} - {"none"}
    rng = np.random.default_rng(0)
    assert all({mix.draw(rng) for _ in range(50)} == {kind} for kind, mix in alone.items())


def draws(kind: str, views: int, times: int, count: int = 400) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [sample_given(rng, views, times, only(kind)) for _ in range(count)]


def within_five_deviations(hits: int, count: int, probability: float) -> bool:
    """A binomial count strays further than this once in two million tests."""
    return abs(hits - count * probability) < 5 * np.sqrt(count * probability * (1 - probability))


def test_mix_draws_each_kind_as_often_as_the_issue_asks():
    assert dict(zip(ISSUE_MIX, MaskMix().probabilities(), strict=True)) == pytest.approx(ISSUE_MIX)
    rng, count = np.random.default_rng(0), 20_000
    names = [MaskMix().draw(rng) for _ in range(count)]
    assert set(names) == set(ISSUE_MIX)
    for name, probability in ISSUE_MIX.items():
        assert within_five_deviations(names.count(name), count, probability), name


def test_masks_have_the_frequencies_that_their_mix_implies():
    """Counted from the masks themselves on a 6x5 grid, where the named shapes cannot be mistaken for one another."""
    rng, count = np.random.default_rng(1), 20_000
    masks = [sample_given(rng, 6, 5, MaskMix()) for _ in range(count)]
    full_views = np.array([mask.all(1).sum() for mask in masks])
    full_times = np.array([mask.all(0).sum() for mask in masks])
    cells = np.array([mask.sum() for mask in masks])
    # one cell: its own kind, and a random count that happens to be 1 of 1..29
    assert within_five_deviations((cells == 1).sum(), count, 0.10 + 0.10 / 29)
    assert within_five_deviations((cells == 0).sum(), count, 0.05)
    # a random subset of 10 of 30 cells is a cross once in a million draws
    crosses = ((full_views == 1) & (full_times == 1) & (cells == 10)).sum()
    assert within_five_deviations(crosses, count, 0.30)
    # one full view: the fixed view, or a prefix of views of length 1 (0.05 x 1/3 prefix x 1/2 over views x 1/5)
    assert within_five_deviations(((full_views == 1) & (cells == 5)).sum(), count, 0.15 + 0.05 / 3 / 2 / 5)
    assert within_five_deviations(((full_times == 1) & (cells == 6)).sum(), count, 0.10 + 0.05 / 3 / 2 / 4)


@pytest.mark.parametrize("views", range(1, 9))
def test_never_is_every_cell_given_at_any_size_and_kind(views):
    rng = np.random.default_rng(views)
    for times in range(1, 9):
        for mix in [MaskMix(), *(only(field.name) for field in fields(MaskMix))]:
            for _ in range(20):
                given = sample_given(rng, views, times, mix)
                assert given.shape == (views, times) and given.dtype == bool
                assert not given.all(), (views, times, mix)


def test_a_single_cell_grid_has_nothing_given():
    rng = np.random.default_rng(0)
    assert not any(sample_given(rng, 1, 1, MaskMix()).any() for _ in range(200))


@pytest.mark.parametrize("kind", [field.name for field in fields(MaskMix)])
def test_given_cells_are_of_those_that_exist_and_never_all_of_these(kind):
    rng = np.random.default_rng(0)
    for _ in range(200):
        exists = rng.random((3, 4)) < rng.choice([0.2, 0.5, 0.9])
        given = sample_given(rng, 3, 4, only(kind), exists)
        assert not (given & ~exists).any()
        assert (exists & ~given).any() or not exists.any()


def test_missing_cells_change_nothing_where_none_is_missing():
    for n in range(50):
        one, other = (sample_given(np.random.default_rng(n), 4, 3, MaskMix(), e) for e in (None, np.ones((4, 3), bool)))
        np.testing.assert_array_equal(one, other)


def test_the_first_frame_is_the_most_common_given_frame_of_a_clip():
    for views, times in ((1, 4), (4, 1)):
        masks = np.array([mask.reshape(4) for mask in draws("one_cell", views, times, 4000)])
        assert (masks.sum(1) == 1).all()
        # the first half the time, and a quarter of the other half
        assert within_five_deviations(masks[:, 0].sum(), 4000, 0.5 + 0.5 / 4)
        assert masks.any(0).all()


def test_grids_are_cut_unless_asked_otherwise_and_a_base_has_clips_of_every_kind():
    assert {CutMix().draw(np.random.default_rng(n)) for n in range(50)} == {"grid"}
    assert {CLIPS.draw(np.random.default_rng(n)) for n in range(200)} == {"fixed_view", "freeze_time", "image"}


def test_cross_is_one_view_and_one_time_each_first_in_five_eighths_of_the_draws():
    masks = draws("view_and_time", 4, 4, 4000)
    assert all(mask.sum() == 7 and mask.all(1).sum() == 1 and mask.all(0).sum() == 1 for mask in masks)
    for axis in (0, 1):
        first = sum(mask.all(1 - axis)[0] for mask in masks)
        assert within_five_deviations(first, 4000, 0.5 + 0.5 / 4)
    # view and time are chosen independently
    both = sum(mask.all(1)[0] and mask.all(0)[0] for mask in masks)
    assert within_five_deviations(both, 4000, (5 / 8) ** 2)


def test_some_views_are_two_to_four_at_all_times_and_one_is_left():
    counts = {8: {2, 3, 4}, 5: {2, 3, 4}, 4: {2, 3}, 3: {2}, 2: {1}}
    for views, expected in counts.items():
        masks = draws("some_views", views, 3)
        assert {int(mask.all(1).sum()) for mask in masks} == expected
        assert all((mask.all(1) == mask.any(1)).all() for mask in masks)
        assert np.any(masks, axis=0).all()  # any view can be among them


def test_borders_are_ends_corners_and_prefixes_of_time_or_view():
    def shape(rows, columns):
        given = np.zeros((4, 5), bool)
        given[np.ix_(rows, columns)] = True
        return given.tobytes()

    all_v, all_t = range(4), range(5)
    expected = {shape(all_v, [0, 4]), shape([0, 3], all_t), shape([0, 3], [0, 4])}
    expected |= {shape(all_v, range(n)) for n in range(1, 5)} | {shape(range(n), all_t) for n in range(1, 4)}
    assert {mask.tobytes() for mask in draws("borders", 4, 5)} == expected


def test_random_cells_reach_every_count_but_all():
    assert {int(mask.sum()) for mask in draws("random_cells", 2, 4)} == set(range(1, 8))


def test_the_same_generator_state_gives_the_same_mask():
    first, second = (
        [sample_given(np.random.default_rng((3, n)), 4, 4, MaskMix()).tobytes() for n in range(50)] for _ in range(2)
    )
    assert first == second and len(set(first)) > 10


def test_weights_that_cannot_be_drawn_from_are_refused():
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mask weights"):
            replace(MaskMix(), none=bad)
    with pytest.raises(ValueError, match="at least one above 0"):
        CutMix(grid=0.0)
