"""The pipeline: position = step, on any number of processes, and cells that are those of the stored grids.

Stored pixels carry (index, view, time) as their three channels, and the cameras their view, so every cell of a batch
says where it came from.
"""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from fourreal.data.pipeline import PipelineConfig, evaluation_batches, grid_batches, units_and_grids

VIEWS = TIMES = 8
CONFIG = PipelineConfig(batch_size=6, seed=5)


def stored_grid(index: int, views: int = VIEWS, times: int = TIMES) -> dict:
    frames = np.empty((views, times, 2, 3, 3), np.uint8)
    frames[..., 0] = index
    frames[..., 1] = np.arange(views)[:, None, None, None]
    frames[..., 2] = np.arange(times)[None, :, None, None]
    K = np.arange(views, dtype=np.float32)[:, None, None] * np.ones((3, 3), np.float32)
    c2w = 100 + np.arange(views, dtype=np.float32)[:, None, None] * np.ones((4, 4), np.float32)
    return {"frames": frames, "K": K, "c2w": c2w, "index": np.int64(index)}


SOURCE = [stored_grid(index) for index in range(20)]


def take(config: PipelineConfig, count: int, source=SOURCE, **options) -> list[dict]:
    iterator = grid_batches(config, source=source, **options)
    batches = list(islice(iterator, count))
    iterator.close()
    return batches


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def origin(frames: np.ndarray) -> np.ndarray:
    """(index, view, time) of each frame [..., h, w, 3], which must be one whole stored frame."""
    assert (frames == frames[..., :1, :1, :]).all()
    return frames[..., 0, 0, :].astype(int)


def test_grid_batch_has_the_promised_keys_shapes_and_types():
    (batch,) = take(CONFIG, 1)
    shapes = {key: (array.shape, array.dtype.name) for key, array in batch.items()}
    assert shapes == {
        "frames": ((6, 4, 4, 2, 3, 3), "uint8"),
        "given": ((6, 4, 4), "bool"),
        "K": ((6, 4, 3, 3), "float32"),
        "c2w": ((6, 4, 4, 4), "float32"),
        "cameras_known": ((6,), "bool"),
        "index": ((6,), "int64"),
    }


@pytest.mark.parametrize("kind", ["grid", "clip"])
def test_batch_of_a_step_is_the_same_wherever_the_run_starts(kind):
    config = replace(CONFIG, kind=kind)
    whole = take(config, 12)
    for start in (1, 7, 11):
        for offset, batch in enumerate(take(config, 12 - start, start_step=start)):
            assert_equal(batch, whole[start + offset])


def test_batches_do_not_depend_on_threads_or_prefetch():
    for first, second in zip(take(CONFIG, 8), take(replace(CONFIG, threads=3, prefetch=1), 8), strict=True):
        assert_equal(first, second)


@pytest.mark.parametrize("kind", ["grid", "clip"])
@pytest.mark.parametrize("process_count", [2, 3])
def test_parts_of_all_processes_concatenate_to_the_batch_of_one_process(kind, process_count):
    config = replace(CONFIG, kind=kind)
    whole = take(config, 10, start_step=3)
    parts = [take(config, 10, start_step=3, process=p, process_count=process_count) for p in range(process_count)]
    for step, batch in enumerate(whole):
        contexts = {part[step].pop("context", None) for part in parts}
        assert contexts == {batch.pop("context", None)}
        assert_equal({key: np.concatenate([part[step][key] for part in parts]) for key in batch}, batch)


def test_batches_of_one_grid_are_those_of_a_larger_batch_one_by_one():
    (batch,) = take(CONFIG, 1)
    for place, single in enumerate(take(replace(CONFIG, batch_size=1), CONFIG.batch_size)):
        assert_equal(single, {key: array[place : place + 1] for key, array in batch.items()})


def test_another_seed_gives_another_order_other_cuts_and_other_masks():
    first, second = take(CONFIG, 5), take(replace(CONFIG, seed=6), 5)
    for key in ("index", "frames", "given"):
        assert not np.array_equal([b[key] for b in first], [b[key] for b in second]), key


def with_units(*shown: str) -> list[dict]:
    """Grids that show the units of each text, a letter a unit."""
    return [
        stored_grid(index) | {"scene": json.dumps({"subjects": [{"unit": unit} for unit in own]})}
        for index, own in enumerate(shown)
    ]


def test_share_of_the_units_leaves_the_grids_that_show_no_others():
    source = with_units("a", "b", "ab", "c", "bc", "d", "aa", "abcd")
    for seed in range(10):
        config = replace(CONFIG, batch_size=1, seed=seed, unit_share=0.5)
        units, places = units_and_grids(config, source=source)
        expected = {
            place for place, own in enumerate(("a", "b", "ab", "c", "bc", "d", "aa", "abcd")) if set(own) <= set(units)
        }
        assert len(units) == 2 and set(places) == expected
        assert {int(batch["index"][0]) for batch in take(config, 2 * len(places), source)} == expected


def test_smaller_share_of_the_units_is_a_part_of_a_larger_one():
    source = with_units(*"abcdefghij")
    small, large = (set(units_and_grids(replace(CONFIG, unit_share=share), source=source)[0]) for share in (0.2, 0.6))
    other = set(units_and_grids(replace(CONFIG, unit_share=0.2, seed=9), source=source)[0])
    assert (len(small), len(large)) == (2, 6) and small < large and other != small


def test_share_of_the_units_that_leaves_no_grid_is_refused():
    with pytest.raises(ValueError, match="leaves 1 of 2 units and no grid"):
        units_and_grids(replace(CONFIG, unit_share=0.1), source=with_units("ab"))


def test_validation_takes_all_units_whatever_the_share():
    batches = list(evaluation_batches(replace(CONFIG, unit_share=0.1), "validation", source=with_units(*"abcdef")))
    assert sorted(np.concatenate([batch["index"] for batch in batches])) == list(range(6))


def test_each_epoch_has_every_grid_once_in_a_new_order():
    config = replace(CONFIG, batch_size=5)
    indices = np.concatenate([batch["index"] for batch in take(config, 12)])
    epochs = indices.reshape(3, 20)
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(epochs[0]) != tuple(range(20))


def test_cut_is_a_regular_sub_grid_of_the_stored_frames_with_its_own_cameras():
    seen = {"view": set(), "time": set()}
    for batch in take(CONFIG, 100):
        for frames, K, c2w, index in zip(batch["frames"], batch["K"], batch["c2w"], batch["index"], strict=True):
            where = origin(frames)
            views, times = where[:, 0, 1], where[0, :, 2]
            assert (where[..., 0] == index).all()
            assert (where[..., 1] == views[:, None]).all() and (where[..., 2] == times[None, :]).all()
            np.testing.assert_array_equal(frames, SOURCE[index]["frames"][np.ix_(views, times)])
            np.testing.assert_array_equal(K, SOURCE[index]["K"][views])
            np.testing.assert_array_equal(c2w, SOURCE[index]["c2w"][views])
            seen["view"].add(tuple(views))
            seen["time"].add(tuple(times))
    straight = {tuple(range(o, o + 4)) for o in range(5)} | {(0, 2, 4, 6), (1, 3, 5, 7)}
    assert seen["time"] == straight  # time never runs backwards
    assert seen["view"] == straight | {views[::-1] for views in straight}


def test_cameras_are_hidden_at_the_rate_asked_for_by_choice_of_the_seed():
    known = np.concatenate([batch["cameras_known"] for batch in take(CONFIG, 100)])
    assert abs(known.mean() - 0.5) < 0.09  # four standard errors of a share of 600
    assert not take(replace(CONFIG, drop_cameras=1.0), 1)[0]["cameras_known"].any()
    assert take(replace(CONFIG, drop_cameras=0.0), 1)[0]["cameras_known"].all()


def test_each_frame_of_a_clip_has_its_camera():
    for context in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        for batch in take(replace(CONFIG, kind="clip", clip_contexts=context), 2):
            views = origin(batch["frames"])[..., 1]
            np.testing.assert_array_equal(batch["K"][..., 0, 0], views)
            np.testing.assert_array_equal(batch["c2w"][..., 0, 0], 100 + views)
            assert batch["cameras_known"].shape == views.shape[:1]


def test_strides_are_equally_frequent_and_views_reversed_half_the_time():
    views = np.concatenate([origin(batch["frames"])[:, :, 0, 1] for batch in take(CONFIG, 150)])
    step = views[:, 1] - views[:, 0]
    # five deviations of a fair coin tossed 900 times
    assert abs((np.abs(step) == 2).sum() - 450) < 75
    assert abs((step < 0).sum() - 450) < 75


def test_reversal_off_keeps_every_grid_in_order():
    for batch in take(replace(CONFIG, reverse_views=0.0), 20):
        assert (np.diff(batch["K"][:, :, 0, 0], axis=1) > 0).all()


def test_clips_are_one_view_or_one_time_or_single_frames_of_one_context_a_batch():
    config = replace(CONFIG, kind="clip", views=5, times=3, clip_contexts=(1.0, 1.0, 1.0))
    contexts = []
    for batch in take(config, 60):
        contexts.append(batch["context"])
        where = origin(batch["frames"])
        assert not batch["given"].all(1).any()
        assert batch["given"].shape == where.shape[:2] and batch["index"].dtype == np.int64
        assert (where[..., 0] == batch["index"][:, None]).all()
        if batch["context"] == "dynamic":
            assert where.shape == (6, 3, 3)
            assert (np.ptp(where[..., 1], axis=1) == 0).all() and (np.diff(where[..., 2], axis=1) > 0).all()
        elif batch["context"] == "freeze_time":
            assert where.shape == (6, 5, 3)
            assert (np.ptp(where[..., 2], axis=1) == 0).all() and (np.diff(where[..., 1], axis=1) != 0).all()
        else:
            assert where.shape == (6 * 3, 1, 3)
            assert len(np.unique(where, axis=0)) == 18
    # 60 draws of three equal contexts: 20 each, give or take four deviations of 3.7
    assert all(abs(contexts.count(name) - 20) < 15 for name in ("dynamic", "freeze_time", "image"))


def test_single_context_mixture_yields_only_that_context():
    config = replace(CONFIG, kind="clip", clip_contexts=(0.0, 1.0, 0.0))
    assert {batch["context"] for batch in take(config, 20)} == {"freeze_time"}


def test_evaluation_covers_the_first_grids_once_with_view_0_and_time_0_given():
    batches = list(evaluation_batches(CONFIG, "test", 16, source=SOURCE))
    assert [len(batch["index"]) for batch in batches] == [6, 6, 6]
    weight = np.concatenate([batch["weight"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(weight, [1] * 16 + [0, 0])
    np.testing.assert_array_equal(index, [*range(16), 15, 15])  # the last grid fills the last batch
    for batch in batches:
        assert batch["frames"].shape == (6, 4, 4, 2, 3, 3)
        np.testing.assert_array_equal(
            origin(batch["frames"])[..., 1], np.broadcast_to([[[0], [2], [4], [6]]], (6, 4, 4))
        )
        np.testing.assert_array_equal(origin(batch["frames"])[..., 2], np.broadcast_to([[[0, 2, 4, 6]]], (6, 4, 4)))
        np.testing.assert_array_equal(batch["K"][:, :, 0, 0], np.broadcast_to([0, 2, 4, 6], (6, 4)))
        assert batch["given"][:, 0, :].all() and batch["given"][:, :, 0].all() and not batch["given"][:, 1:, 1:].any()


def test_evaluation_clips_come_as_videos_of_view_0_and_of_time_0():
    config = replace(CONFIG, kind="clip", views=4, times=8)
    batches = list(evaluation_batches(config, "test", 8, source=SOURCE))
    assert [batch["context"] for batch in batches] == ["dynamic", "freeze_time"] * 2
    dynamic, freeze_time = origin(batches[0]["frames"]), origin(batches[1]["frames"])
    assert (dynamic[..., 1] == 0).all() and (dynamic[..., 2] == np.arange(8)).all()
    assert (freeze_time[..., 2] == 0).all() and (freeze_time[..., 1] == [0, 2, 4, 6]).all()
    assert all(batch["given"][:, 0].all() and not batch["given"][:, 1:].any() for batch in batches)
    assert [batch["weight"].sum() for batch in batches] == [6, 6, 2, 2]


def test_evaluation_leaves_something_to_generate_at_any_size():
    for kind in ("grid", "clip"):
        for views, times in ((1, 4), (4, 1), (1, 1), (2, 2)):
            for batch in evaluation_batches(
                replace(CONFIG, kind=kind, views=views, times=times), "test", 6, source=SOURCE
            ):
                given = batch["given"].reshape(6, -1)
                assert not given.all(1).any() and given.any() == (given.shape[1] > 1)


def test_grids_of_one_view_one_time_and_the_full_size_are_cut():
    for views, times in ((1, 4), (4, 1), (1, 1), (8, 8)):
        (batch,) = take(replace(CONFIG, views=views, times=times), 1)
        assert batch["frames"].shape == (6, views, times, 2, 3, 3)


def test_bad_requests_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="give a multiple"):
        take(CONFIG, 1, process_count=4)
    with pytest.raises(ValueError, match="0 <= process < count"):
        take(CONFIG, 1, process=2, process_count=2)
    with pytest.raises(ValueError, match="have 8 x 8"):
        take(replace(CONFIG, views=9), 1)
    with pytest.raises(ValueError, match="is empty"):
        take(CONFIG, 1, source=[])
    with pytest.raises(ValueError, match="ask for 1 to 20"):
        next(evaluation_batches(CONFIG, "test", 21, source=SOURCE))
    for bad in (
        {"batch_size": 0},
        {"seed": -1},
        {"kind": "video"},
        {"reverse_views": 2.0},
        {"clip_contexts": (0, 0, 0)},
    ):
        with pytest.raises(ValueError, match=f"data.{next(iter(bad))}"):
            replace(CONFIG, **bad)
