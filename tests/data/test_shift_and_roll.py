"""Shift and roll: scenes that are the same in any cut, cells that follow from a shift and a roll, and what one axis tells."""

import itertools
from itertools import islice

import numpy as np
import pytest

from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.sources import ShiftAndRoll
from fourreal.data.sources.shift_and_roll import Layers
from fourreal.errors import UserError
from fourreal.scene import Cut
from fourreal.serialize import from_json, to_json

SIZE, UNIT, STEPS = 16, 4, 4  # the defaults: shifts and rolls by 0, 4, 8, 12 pixels
FORMS = ("plain", "sprites")
NAMES = ("x[0,t] alone", "x[v,0] alone", "average of both", "best sum of both")
VARIANCE = (256**2 - 1) / 12  # of a colour, uniform over 0, 1, ..., 255


def whole(source: ShiftAndRoll) -> Cut:
    return Cut(np.arange(source.views), np.arange(source.times))


def rolled(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    return np.roll(picture, (down, right), axis=(0, 1))


def composed(layers: Layers, shift: int, rolls: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(a cell of `sprites`, where its sprites are), layer upon layer."""
    frame, subject = rolled(layers.texture[0], 0, shift), np.zeros((SIZE, SIZE), bool)
    for k, depth in ((1, 2), (2, 3)):
        mask = rolled(layers.mask[k], rolls[k - 1], depth * shift)
        frame = np.where(mask[..., None], rolled(layers.texture[k], rolls[k - 1], depth * shift), frame)
        subject |= mask
    return frame, subject


@pytest.mark.parametrize("form", FORMS)
def test_scene_depends_on_seed_split_and_place_only(form):
    source = ShiftAndRoll(form, seed=3)
    scene = source.open("train").read(5, whole(source))
    again = ShiftAndRoll(form, seed=3).open("train")
    again.read(9, whole(source))
    np.testing.assert_array_equal(again.read(5, whole(source)).frames, scene.frames)
    others = [
        ShiftAndRoll(form, seed=4).open("train").read(5, whole(source)),
        source.open("test").read(5, whole(source)),
        source.open("train").read(6, whole(source)),
    ]
    assert all((other.frames != scene.frames).mean() > 0.5 for other in others)
    prints = {
        ShiftAndRoll(f, seed=s).open(split).fingerprint for f in FORMS for s in (3, 4) for split in ("train", "test")
    }
    assert len(prints) == 8


def test_colours_of_sprites_tell_whose_a_pixel_is():
    source = ShiftAndRoll("sprites")
    for i in range(5):
        scenes = source.open("train")
        frames, subject = scenes.read(i, whole(source)).frames, scenes.read(i, whole(source)).more["subject"]
        lacks = frames == 0
        assert lacks[~subject][:, 0].all() and (lacks[subject][:, 1] | lacks[subject][:, 2]).all()
        assert 0.1 < lacks[subject][:, 1].mean() < 0.9 and lacks[~subject][:, 1:].mean() < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_cut_of_a_scene_is_that_of_the_whole_in_any_order(form):
    source = ShiftAndRoll(form, views=4, times=5)
    scenes = source.open("validation")
    scene, cut = scenes.read(7, whole(source)), Cut(np.array([3, 0, 1]), np.array([4, 4, 2]))
    assert scenes.shape(7) == scene.frames.shape[:4] == (4, 5, SIZE, SIZE) and scene.frames.dtype == np.uint8
    found = scenes.read(7, cut)
    np.testing.assert_array_equal(found.frames, scene.frames[np.ix_(*cut)])
    assert found.index == 7 and set(found.more) == set(scene.more) == ({"subject"} if form == "sprites" else set())
    for name, value in scene.more.items():
        np.testing.assert_array_equal(found.more[name], value[np.ix_(*cut)])
    for name, value in scenes.floors(7, whole(source)).items():
        np.testing.assert_array_equal(scenes.floors(7, cut)[name], value[np.ix_(*cut)], err_msg=name)


def test_plain_cell_is_the_first_cell_shifted_as_its_view_and_rolled_as_its_time():
    """Both are found by trying all rolls by whole pixels on x[v,0] and x[0,t], of which one alone fits."""
    source = ShiftAndRoll("plain")
    scenes = source.open("test")
    for i in range(20):
        cells, first = scenes.read(i, whole(source)).frames, scenes.read(i, whole(source)).frames[0, 0]
        tried = list(itertools.product(range(SIZE), repeat=2))
        of_view, of_time = (
            [[by for by in tried if np.array_equal(rolled(first, *by), cell)] for cell in side]
            for side in (cells[:, 0], cells[0])
        )
        assert all(len(fits) == 1 for fits in of_view + of_time)
        assert all(by[0] == 0 and by[1] % UNIT == 0 for (by,) in of_view)
        assert all(by[1] == 0 and by[0] % UNIT == 0 for (by,) in of_time)
        for v, t in np.ndindex(cells.shape[:2]):
            np.testing.assert_array_equal(cells[v, t], rolled(first, of_time[t][0][0], of_view[v][0][1]))
        layers = scenes.layers(i)
        assert [by[1] for (by,) in of_view] == list((layers.shift - layers.shift[0]) % SIZE)
        assert [by[0] for (by,) in of_time] == list((layers.roll[0] - layers.roll[0, 0]) % SIZE)


def test_sprites_move_before_a_background_that_stands_still_in_time():
    source = ShiftAndRoll("sprites")
    scenes = source.open("train")
    for i in range(20):
        scene, layers = scenes.read(i, whole(source)), scenes.layers(i)
        for v, t in np.ndindex(scene.frames.shape[:2]):
            frame, subject = composed(layers, layers.shift[v], layers.roll[1:, t])
            np.testing.assert_array_equal(scene.frames[v, t], frame)
            np.testing.assert_array_equal(scene.more["subject"][v, t], subject)
        assert scene.more["subject"].dtype == bool and 0.25 <= scene.more["subject"].mean() <= 0.5


def test_pixels_without_a_sprite_show_one_background_that_views_alone_shift():
    source = ShiftAndRoll("sprites")
    scenes = source.open("train")
    for i in range(20):
        scene, background = scenes.read(i, whole(source)), scenes.layers(i).texture[0]
        clear = ~scene.more["subject"]
        for v in range(source.views):
            fits = [
                right
                for right in range(SIZE)
                if np.array_equal(
                    np.where(clear[v, ..., None], rolled(background, 0, right), 0),
                    scene.frames[v] * clear[v, ..., None],
                )
            ]
            assert len(fits) == 1 and fits[0] == scenes.layers(i).shift[v]


def test_every_shift_and_roll_is_as_likely_as_any_other_and_independent_of_the_rest():
    scenes = ShiftAndRoll("sprites").open("train")
    drawn = np.array([[*layers.shift, *layers.roll[1:].ravel()] for layers in map(scenes.layers, range(3000))]) // UNIT
    assert drawn.shape == (3000, 9) and drawn.min() == 0 and drawn.max() == STEPS - 1
    assert all((scenes.layers(i).roll[0] == 0).all() for i in range(20))

    def chi_square(numbers: np.ndarray, cases: int) -> float:
        counts = np.bincount(numbers, minlength=cases)
        return ((counts - len(numbers) / cases) ** 2).sum() / (len(numbers) / cases)

    # one in ten thousand of such numbers is above: of 3 and of 15 degrees of freedom
    assert max(chi_square(column, 4) for column in drawn.T) < 21.1
    pairs = itertools.combinations(drawn.T, 2)
    assert max(chi_square(STEPS * one + other, 16) for one, other in pairs) < 44.3


def test_floors_of_plain_are_the_analytic_errors_of_a_mean_over_4_rolls_of_independent_colours():
    """With F = f(s, m) of 16 independent colours: 3/4 of their variance from one axis, 21/32 from the average, 9/16 at best."""
    source = ShiftAndRoll("plain")
    scenes = source.open("test")
    errors = {name: [] for name in NAMES}
    for i in range(300):
        truth = scenes.read(i, whole(source)).frames.astype(float)
        for name, frames in scenes.floors(i, whole(source)).items():
            errors[name].append(np.mean((frames - truth) ** 2))
    found = {name: np.mean(values) / VARIANCE for name, values in errors.items()}
    assert found == pytest.approx(dict(zip(NAMES, (3 / 4, 3 / 4, 21 / 32, 9 / 16), strict=True)), rel=0.02)


def test_floors_of_sprites_are_the_means_over_all_shifts_and_rolls():
    source = ShiftAndRoll("sprites")
    scenes = source.open("validation")
    layers, found = scenes.layers(4), scenes.floors(4, whole(source))
    moves = [UNIT * step for step in range(STEPS)]
    cell = {(s, m): composed(layers, s, m)[0].astype(float) for s in moves for m in itertools.product(moves, repeat=2)}
    everything = np.mean(list(cell.values()), axis=0)
    for v, t in np.ndindex(source.views, source.times):
        shift, roll = layers.shift[v], tuple(layers.roll[1:, t])
        by_time = np.mean([picture for (_, m), picture in cell.items() if m == roll], axis=0)
        by_view = np.mean([picture for (s, _), picture in cell.items() if s == shift], axis=0)
        expected = by_time, by_view, (by_time + by_view) / 2, (by_time + by_view - everything).clip(0, 255)
        assert list(found) == list(NAMES)
        for name, frame in zip(NAMES, expected, strict=True):
            np.testing.assert_allclose(found[name][v, t], frame, atol=1e-9, err_msg=name)


def test_floors_over_too_many_rolls_are_refused_before_they_are_drawn():
    source = ShiftAndRoll("sprites", size=128, unit=1)
    with pytest.raises(UserError, match="the floors need 16384 rolls: give a larger unit"):
        source.open("test").floors(0, whole(source))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("form=squares", "form is 'squares'"),
        ("views=0", "views is 0: give 1 to 1024"),
        ("times=2000", "times is 2000: give 1 to 1024"),
        ("size=18", "give a size that 4 and the unit divide"),
        ("unit=3", "size 16, unit 3: give a size that 4 and the unit divide"),
        ("seed=-1", "seed is -1: give 0 or more"),
        ("sice=16", "sice"),
    ],
)
def test_fields_that_make_no_scenes_are_refused_in_one_line(text, said):
    with pytest.raises(UserError) as error:
        PipelineConfig(source=f"shift_and_roll:{text}")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_split_or_scene_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="no split 'dev': it has train, validation, test"):
        ShiftAndRoll().open("dev")
    scenes = ShiftAndRoll().open("test")
    for i in (-1, len(scenes)):
        with pytest.raises(IndexError, match="1000 scenes in test"):
            scenes.read(i, whole(ShiftAndRoll()))


@pytest.mark.parametrize("form", FORMS)
def test_config_that_names_the_source_gives_batches_of_its_scenes(form):
    config = PipelineConfig(source=f"shift_and_roll:form={form},seed=2", views=3, times=3, batch_size=4)
    assert config.source == ShiftAndRoll(form, seed=2) and from_json(PipelineConfig, to_json(config)) == config
    source = config.source

    def stored(split: str, index: int) -> np.ndarray:
        return source.open(split).read(int(index), whole(source)).frames

    batches = Batches(config)
    iterator = batches.train()
    for batch in islice(iterator, 3):
        assert batch["frames"].shape == (4, 3, 3, SIZE, SIZE, 3) and batch["given"].shape == (4, 3, 3)
        for frames, index in zip(batch["frames"], batch["index"], strict=True):
            known = {cell.tobytes() for cell in stored("train", index).reshape(9, -1)}
            assert {cell.tobytes() for cell in frames.reshape(9, -1)} <= known
    iterator.close()
    (first, second) = batches.evaluation("validation", 6)
    for batch in (first, second):
        for frames, index in zip(batch["frames"], batch["index"], strict=True):
            np.testing.assert_array_equal(frames, stored("validation", index))
    assert list(first["index"]) == [0, 1, 2, 3] and first["given"][:, 0].all() and first["given"][:, :, 0].all()
