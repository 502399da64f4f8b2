"""The pipeline: position = step, on any number of processes, and cells that are those of the stored grids.

Stored pixels carry (index, view, time) as their three channels, and the cameras their view, so every cell of a batch
says where it came from.
"""

from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import pytest
from scenes_in_memory import InMemory, Pooling

from fourreal.conditions import Cameras, Text
from fourreal.data.batches import Batches, PipelineConfig, units_and_scenes
from fourreal.data.masks import CLIPS, CutMix, MaskMix
from fourreal.errors import UserError
from fourreal.scene import Cameras as Poses
from fourreal.scene import Scene

VIEWS = TIMES = 8
CONFIG = PipelineConfig(batch_size=6, seed=5)
CLIP = replace(CONFIG, cuts=CLIPS)
CAMERAS = (Cameras(),)


def stored_scene(index: int, views: int = VIEWS, times: int = TIMES) -> Scene:
    frames = np.empty((views, times, 2, 3, 3), np.uint8)
    frames[..., 0] = index
    frames[..., 1] = np.arange(views)[:, None, None, None]
    frames[..., 2] = np.arange(times)[None, :, None, None]
    K = np.arange(views, dtype=np.float32)[:, None, None] * np.ones((3, 3), np.float32)
    c2w = 100 + np.arange(views, dtype=np.float32)[:, None, None] * np.ones((4, 4), np.float32)
    text = np.full((2, 5), index, np.float32)
    return Scene(frames, cameras=Poses(K, c2w), text=text)


SCENES = [stored_scene(index) for index in range(20)]


def take(config: PipelineConfig, count: int, scenes=None, conditions=CAMERAS, codec=None, **options) -> list[dict]:
    scenes = scenes if isinstance(scenes, InMemory) else InMemory(SCENES if scenes is None else scenes)
    batches = Batches(config, conditions, scenes=scenes, **({} if codec is None else {"codec": codec}))
    iterator = batches.train(**options)
    found = list(islice(iterator, count))
    iterator.close()
    return found


def evaluation(config: PipelineConfig, count: int | None = None, scenes=SCENES, masks=None, **fields) -> list[dict]:
    return list(Batches(config, scenes=InMemory(scenes), **fields).evaluation("test", count, masks))


def assert_equal(first: dict, second: dict) -> None:
    """Two batches, in structure and values."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def origin(frames: np.ndarray) -> np.ndarray:
    """(index, view, time) of each frame [..., h, w, 3], which must be one whole stored frame."""
    assert (frames == frames[..., :1, :1, :]).all()
    return frames[..., 0, 0, :].astype(int)


def test_batch_has_the_promised_keys_shapes_and_types():
    (batch,) = take(CONFIG, 1, conditions=(Cameras(), Text(width=5)))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}
    assert {path: (array.shape, array.dtype.name) for path, array in leaves.items()} == {
        "['frames']": ((6, 4, 4, 2, 3, 3), "uint8"),
        "['given']": ((6, 4, 4), "bool"),
        "['index']": ((6,), "int64"),
        "['conditions']['cameras'].K": ((6, 4, 3, 3), "float32"),
        "['conditions']['cameras'].c2w": ((6, 4, 4, 4), "float32"),
        "['conditions']['cameras'].known": ((6,), "bool"),
        "['conditions']['cameras'].reference": ((6,), "int32"),
        "['conditions']['text'].features": ((6, 512, 5), "float32"),
        "['conditions']['text'].negative": ((6, 1, 5), "float32"),
        "['dropped']['cameras']": ((6,), "bool"),
    }


@pytest.mark.parametrize("config", [CONFIG, CLIP], ids=["grid", "clip"])
def test_batch_of_a_step_is_the_same_wherever_the_run_starts(config):
    whole = take(config, 12)
    for start in (1, 7, 11):
        for offset, batch in enumerate(take(config, 12 - start, start_step=start)):
            assert_equal(batch, whole[start + offset])


def test_windows_take_every_scene_once_an_epoch_from_few_places_and_shuffle_anew():
    config = replace(CONFIG, batch_size=1, window=32)
    scenes = [SCENES[0]] * 200
    index = np.concatenate([batch["index"] for batch in take(config, 400, scenes)]).reshape(2, 200)
    for epoch in index:
        assert sorted(epoch) == list(range(200))
        for start in range(0, 192, 32):
            window = np.sort(epoch[start : start + 32])
            assert len(np.unique(window // 2)) == 16  # pairs that lie together
            assert (np.diff(epoch[start : start + 32]) != 1).sum() > 20  # not in their order
    assert (index[0] != index[1]).any()
    later = np.concatenate([batch["index"] for batch in take(config, 20, scenes, start_step=190)])
    np.testing.assert_array_equal(later, index.ravel()[190:210])


def test_batches_do_not_depend_on_threads_or_prefetch():
    for first, second in zip(take(CONFIG, 8), take(replace(CONFIG, threads=3, prefetch=1), 8), strict=True):
        assert_equal(first, second)


@pytest.mark.parametrize("config", [CONFIG, CLIP], ids=["grid", "clip"])
@pytest.mark.parametrize("process_count", [2, 3])
def test_parts_of_all_processes_concatenate_to_the_batch_of_one_process(config, process_count):
    whole = take(config, 10, start_step=3)
    parts = [take(config, 10, start_step=3, process=p, process_count=process_count) for p in range(process_count)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert_equal(jax.tree.map(lambda *arrays: np.concatenate(arrays), *shares), batch)


def test_batches_of_one_grid_are_those_of_a_larger_batch_one_by_one():
    (batch,) = take(CONFIG, 1)
    for place, single in enumerate(take(replace(CONFIG, batch_size=1), CONFIG.batch_size)):
        assert_equal(single, jax.tree.map(lambda array, place=place: array[place : place + 1], batch))


def test_another_condition_changes_nothing_of_the_others():
    """What is drawn for a condition depends on its name alone: a model with one more sees the same of the rest."""
    for one, both in zip(take(CONFIG, 4), take(CONFIG, 4, conditions=(Text(width=5), Cameras())), strict=True):
        del both["conditions"]["text"]
        assert_equal(one, both)


def test_another_seed_gives_another_order_other_cuts_and_other_masks():
    first, second = take(CONFIG, 5), take(replace(CONFIG, seed=6), 5)
    for key in ("index", "frames", "given"):
        assert not np.array_equal([b[key] for b in first], [b[key] for b in second]), key


class WithUnits(InMemory):
    """Scenes that show the units of each text, a letter a unit."""

    def __init__(self, *shown: str):
        super().__init__([stored_scene(index) for index in range(len(shown))])
        self.shown = shown

    def units(self, i: int) -> frozenset[str]:
        return frozenset(self.shown[i])


def test_share_of_the_units_leaves_the_grids_that_show_no_others():
    scenes = WithUnits("a", "b", "ab", "c", "bc", "d", "aa", "abcd")
    for seed in range(10):
        config = replace(CONFIG, batch_size=1, seed=seed, unit_share=0.5)
        units, places = units_and_scenes(config, scenes)
        expected = {place for place, own in enumerate(scenes.shown) if set(own) <= set(units)}
        assert len(units) == 2 and set(places) == expected
        assert {int(batch["index"][0]) for batch in take(config, 2 * len(places), scenes)} == expected


def test_smaller_share_of_the_units_is_a_part_of_a_larger_one():
    scenes = WithUnits(*"abcdefghij")
    small, large = (set(units_and_scenes(replace(CONFIG, unit_share=share), scenes)[0]) for share in (0.2, 0.6))
    other = set(units_and_scenes(replace(CONFIG, unit_share=0.2, seed=9), scenes)[0])
    assert (len(small), len(large)) == (2, 6) and small < large and other != small


def test_share_of_the_units_that_leaves_no_grid_is_refused():
    with pytest.raises(ValueError, match="leaves 1 of 2 units and no grid"):
        units_and_scenes(replace(CONFIG, unit_share=0.1), WithUnits("ab"))
    with pytest.raises(ValueError, match="does not say which units its scenes show"):
        units_and_scenes(replace(CONFIG, unit_share=0.1), InMemory(SCENES))


def test_validation_takes_all_units_whatever_the_share():
    batches = Batches(replace(CONFIG, unit_share=0.1), scenes=WithUnits(*"abcdef")).evaluation("validation")
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
        poses = batch["conditions"]["cameras"]
        for frames, K, c2w, index in zip(batch["frames"], poses.K, poses.c2w, batch["index"], strict=True):
            where = origin(frames)
            views, times = where[:, 0, 1], where[0, :, 2]
            assert (where[..., 0] == index).all()
            assert (where[..., 1] == views[:, None]).all() and (where[..., 2] == times[None, :]).all()
            np.testing.assert_array_equal(frames, SCENES[index].frames[np.ix_(views, times)])
            np.testing.assert_array_equal(K, SCENES[index].cameras.K[views])
            np.testing.assert_array_equal(c2w, SCENES[index].cameras.c2w[views])
            seen["view"].add(tuple(views))
            seen["time"].add(tuple(times))
    straight = {tuple(range(o, o + 4)) for o in range(5)} | {(0, 2, 4, 6), (1, 3, 5, 7)}
    assert seen["time"] == straight  # time never runs backwards
    assert seen["view"] == straight | {views[::-1] for views in straight}


def test_condition_is_dropped_at_its_own_rate_by_choice_of_the_seed_and_never_in_evaluation():
    dropped = np.concatenate([batch["dropped"]["cameras"] for batch in take(CONFIG, 100)])
    assert abs(dropped.mean() - 0.5) < 0.11  # five standard errors of a share of 600
    assert take(CONFIG, 1, conditions=(Cameras(drop=1.0),))[0]["dropped"]["cameras"].all()
    assert "dropped" not in take(CONFIG, 1, conditions=(Cameras(drop=0.0),))[0]
    assert all("dropped" not in batch for batch in evaluation(CONFIG, conditions=CAMERAS))


def test_reference_camera_is_drawn_in_training_and_the_first_in_evaluation():
    drawn = np.concatenate([batch["conditions"]["cameras"].reference for batch in take(CONFIG, 60)])
    counts = np.bincount(drawn, minlength=4)
    assert len(counts) == 4 and np.abs(counts - 90).max() < 42  # five deviations of 360 draws of a quarter
    for batch in evaluation(CONFIG, conditions=CAMERAS):
        assert (batch["conditions"]["cameras"].reference == 0).all()


def test_scenes_without_cameras_are_said_to_have_unknown_ones():
    scenes = [scene._replace(cameras=None) for scene in SCENES]
    (batch,) = take(CONFIG, 1, scenes)
    cameras = batch["conditions"]["cameras"]
    assert not cameras.known.any() and cameras.K.shape == (6, 4, 3, 3) and cameras.c2w.shape == (6, 4, 4, 4)


def test_text_of_a_scene_reaches_its_examples_and_its_lack_is_refused():
    (batch,) = take(CONFIG, 1, conditions=(Text(width=5),))
    np.testing.assert_array_equal(batch["conditions"]["text"].features[:, 0, 0], batch["index"])
    with pytest.raises(ValueError, match="the source's scenes hold none"):
        take(CONFIG, 1, [scene._replace(text=None) for scene in SCENES], conditions=(Text(width=5),))


def test_each_clip_has_the_cameras_of_its_views():
    for kind in ("fixed_view", "freeze_time", "image"):
        for batch in take(replace(CONFIG, cuts=CutMix(grid=0.0, **{kind: 1.0})), 2):
            views = origin(batch["frames"])[:, :, 0, 1]
            cameras = batch["conditions"]["cameras"]
            np.testing.assert_array_equal(cameras.K[..., 0, 0], views)
            np.testing.assert_array_equal(cameras.c2w[..., 0, 0], 100 + views)
            assert (cameras.reference < views.shape[1]).all()


def test_strides_are_equally_frequent_and_views_reversed_half_the_time():
    views = np.concatenate([origin(batch["frames"])[:, :, 0, 1] for batch in take(CONFIG, 150)])
    step = views[:, 1] - views[:, 0]
    # five deviations of a fair coin tossed 900 times
    assert abs((np.abs(step) == 2).sum() - 450) < 75
    assert abs((step < 0).sum() - 450) < 75


def test_reversal_off_keeps_every_grid_in_order():
    for batch in take(replace(CONFIG, reverse_views=0.0), 20):
        assert (np.diff(origin(batch["frames"])[:, :, 0, 1], axis=1) > 0).all()


def kind_of(frames: np.ndarray) -> str:
    views, times = frames.shape[1:3]
    return {(True, True): "image", (True, False): "fixed_view", (False, True): "freeze_time"}[views == 1, times == 1]


def test_clips_are_grids_of_one_view_or_one_time_or_single_frames_of_one_kind_a_batch():
    config = replace(CONFIG, views=5, times=3, cuts=CutMix(grid=0.0, fixed_view=1.0, freeze_time=1.0, image=1.0))
    kinds = []
    for batch in take(config, 60):
        where = origin(batch["frames"])
        kinds.append(kind_of(batch["frames"]))
        assert batch["given"].shape == where.shape[:3] and not batch["given"].all((1, 2)).any()
        assert (where[..., 0] == batch["index"][:, None, None]).all() and batch["index"].dtype == np.int64
        if kinds[-1] == "fixed_view":
            assert where.shape == (6, 1, 3, 3) and (np.diff(where[..., 2], axis=2) > 0).all()
            assert batch["given"].any()
        elif kinds[-1] == "freeze_time":
            assert where.shape == (6, 5, 1, 3) and (np.diff(where[..., 1], axis=1) != 0).all()
            assert batch["given"].any()
        else:  # as many tokens as a fixed-view video, all of one scene
            assert where.shape == (6 * 3, 1, 1, 3) and not batch["given"].any()
            assert len(np.unique(where.reshape(18, 3), axis=0)) == 18
            assert (where.reshape(6, 3, 3)[..., 0] == where.reshape(6, 3, 3)[:, :1, 0]).all()
    # 60 draws of three equal kinds: 20 each, give or take four deviations of 3.7
    assert all(abs(kinds.count(name) - 20) < 15 for name in ("fixed_view", "freeze_time", "image"))


def test_grids_and_clips_mix_as_their_weights_say():
    config = replace(CONFIG, cuts=CutMix(grid=1.0, freeze_time=1.0))
    shapes = [batch["frames"].shape[1:3] for batch in take(config, 60)]
    assert set(shapes) == {(4, 4), (4, 1)} and abs(shapes.count((4, 4)) - 30) < 20


def with_gaps(scene: Scene) -> Scene:
    """Without the cells of view 2 from time 5 on, with the lower half of view 0 invalid, and cells that say nothing."""
    exists, valid = np.ones((VIEWS, TIMES), bool), np.ones(scene.frames.shape[:4], bool)
    exists[2, 5:] = valid[0, :, 1] = False
    return scene._replace(exists=exists, valid=valid)


def test_each_step_cuts_one_of_the_sizes_equally_often_and_the_others_change_nothing_of_it():
    sizes = ((4, 4), (8, 4), (4, 8), (8, 8))
    config = replace(CONFIG, views=8, times=8, sizes=sizes, batch_size=2)
    batches = take(config, 120)
    shapes = [batch["frames"].shape[1:3] for batch in batches]
    # 120 draws of a quarter: 30 on average, deviation 4.7
    assert all(15 <= shapes.count(size) <= 45 for size in sizes)
    alone = take(replace(config, views=4, times=4, sizes=()), 120)
    for batch, other in zip(batches, alone, strict=True):
        if batch["frames"].shape[1:3] == (4, 4):
            assert_equal(batch, other)
    with pytest.raises(UserError, match="sizes has 9 x 4: give sizes of at most"):
        replace(config, sizes=((9, 4),))


def test_missing_cells_and_invalid_pixels_reach_the_batch_and_no_missing_cell_is_given():
    scenes = [with_gaps(scene) if index % 2 else scene for index, scene in enumerate(SCENES)]
    seen = set()
    for cuts in (CutMix(), CLIPS):
        for batch in take(replace(CONFIG, cuts=cuts), 40, scenes):
            where = origin(batch["frames"])
            views, times, odd = where[..., 1], where[..., 2], where[..., 0] % 2 == 1
            missing = odd & (views == 2) & (times >= 5)
            np.testing.assert_array_equal(batch["exists"], ~missing)
            invalid = np.zeros(batch["frames"].shape[:-1], bool)
            invalid[..., 1, :] = (odd & (views == 0))[..., None]
            np.testing.assert_array_equal(batch["valid"], ~invalid)
            assert not (batch["given"] & missing).any()
            assert (batch["exists"] & ~batch["given"]).any((1, 2))[batch["exists"].any((1, 2))].all()
            seen.add((bool(missing.any()), bool(batch["given"].any())))
    assert (True, True) in seen
    (batch,) = evaluation(replace(CONFIG, views=8, times=8, batch_size=20), scenes=scenes)
    assert not batch["given"][1::2, 2, 5:].any() and batch["exists"].sum() == 20 * 64 - 10 * 3


def test_source_whose_scenes_are_whole_sends_no_masks_of_cells_and_pixels():
    assert not {"exists", "valid"} & take(CONFIG, 1)[0].keys()


def latent_scenes(count: int = 6) -> list[Scene]:
    """Frames of 4 x 4 for a codec that merges two times and 2 x 2 pixels."""
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(count):
        exists, valid = rng.random((8, 8)) < 0.8, rng.random((8, 8, 4, 4)) < 0.8
        scenes.append(Scene(rng.integers(0, 256, (8, 8, 4, 4, 3), np.uint8), exists=exists, valid=valid))
    return scenes


def test_masks_of_a_codec_that_merges_times_are_over_latents():
    """A latent is missing, and a pixel of it invalid, where any of what it is made of is."""
    for cuts, shape in ((CutMix(), (4, 2)), (CutMix(grid=0.0, fixed_view=1.0), (1, 2))):
        for batch in take(replace(CONFIG, cuts=cuts), 10, latent_scenes(), conditions=(), codec=Pooling()):
            views, times = batch["frames"].shape[1:3]
            assert batch["given"].shape[1:] == shape == (views, times // 2)
            assert batch["exists"].shape[1:] == shape and batch["valid"].shape[1:] == (*shape, 2, 2)
            assert not (batch["given"] & ~batch["exists"]).any()
    scenes = latent_scenes()
    (batch,) = evaluation(replace(CONFIG, views=8, times=8), scenes=scenes, codec=Pooling())
    for example, scene in enumerate(scenes):
        for u in range(4):
            np.testing.assert_array_equal(batch["exists"][example, :, u], scene.exists[:, 2 * u : 2 * u + 2].all(1))
            for y, x in np.ndindex(2, 2):
                block = scene.valid[:, 2 * u : 2 * u + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                np.testing.assert_array_equal(batch["valid"][example, :, u, y, x], block.all((1, 2, 3)))


def test_stored_latents_are_cut_as_they_are_with_masks_of_their_own_shape():
    scenes = [scene._replace(frames=scene.frames / np.float32(255)) for scene in latent_scenes()]
    (batch,) = take(CONFIG, 1, scenes, conditions=(), codec=Pooling())
    assert batch["frames"].dtype == np.float32 and batch["frames"].shape == (6, 4, 4, 4, 4, 3)
    assert batch["given"].shape == batch["exists"].shape == (6, 4, 4) and batch["valid"].shape == (6, 4, 4, 4, 4)


def test_number_of_times_that_the_codec_cannot_merge_is_refused():
    with pytest.raises(ValueError, match="3 times: give an even number"):
        take(replace(CONFIG, times=3), 1, latent_scenes(), conditions=(), codec=Pooling())


def test_evaluation_covers_the_first_grids_once_with_view_0_and_time_0_given():
    batches = evaluation(CONFIG, 16, conditions=CAMERAS)
    assert [len(batch["index"]) for batch in batches] == [6, 6, 6]
    weight = np.concatenate([batch["weight"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(weight, [1] * 16 + [0, 0])
    np.testing.assert_array_equal(index, [*range(16), 15, 15])  # the last grid fills the last batch
    for batch in batches:
        assert batch["frames"].shape == (6, 4, 4, 2, 3, 3)
        where, K = origin(batch["frames"]), batch["conditions"]["cameras"].K
        np.testing.assert_array_equal(where[..., 1], np.broadcast_to([[[0], [2], [4], [6]]], (6, 4, 4)))
        np.testing.assert_array_equal(where[..., 2], np.broadcast_to([[[0, 2, 4, 6]]], (6, 4, 4)))
        np.testing.assert_array_equal(K[:, :, 0, 0], np.broadcast_to([0, 2, 4, 6], (6, 4)))
        assert batch["given"][:, 0, :].all() and batch["given"][:, :, 0].all() and not batch["given"][:, 1:, 1:].any()


def test_evaluation_with_masks_of_a_kind_repeats_them_and_draws_one_a_scene():
    masks = MaskMix().alone()["fixed_view"]
    one, other = (np.concatenate([b["given"] for b in evaluation(CONFIG, 12, masks=masks)]) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert (one.all(2).sum(1) == 1).all() and (one.sum((1, 2)) == 4).all()
    assert len({given.tobytes() for given in one}) > 1


def test_evaluation_of_clips_comes_as_videos_of_view_0_and_of_time_0():
    batches = evaluation(replace(CLIP, views=4, times=8), 8)
    assert [kind_of(batch["frames"]) for batch in batches] == ["fixed_view", "freeze_time"] * 2
    dynamic, freeze_time = (origin(batch["frames"]) for batch in batches[:2])
    assert (dynamic[..., 1] == 0).all() and (dynamic[:, 0, :, 2] == np.arange(8)).all()
    assert (freeze_time[..., 2] == 0).all() and (freeze_time[:, :, 0, 1] == [0, 2, 4, 6]).all()
    for batch in batches:
        given = batch["given"].reshape(6, -1)
        assert given[:, 0].all() and not given[:, 1:].any()
    assert [batch["weight"].sum() for batch in batches] == [6, 6, 2, 2]


def test_evaluation_leaves_something_to_generate_at_any_size():
    for config in (CONFIG, CLIP):
        for views, times in ((1, 4), (4, 1), (1, 1), (2, 2)):
            for batch in evaluation(replace(config, views=views, times=times), 6):
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
        take(CONFIG, 1, InMemory([]))
    with pytest.raises(ValueError, match="ask for 1 to 20"):
        evaluation(CONFIG, 21)
    for bad in ({"batch_size": 0}, {"seed": -1}, {"reverse_views": 2.0}, {"unit_share": 0.0}):
        with pytest.raises(ValueError, match=f"data.{next(iter(bad))}"):
            replace(CONFIG, **bad)
