"""Hints against a search and a loop over cells."""

import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.conditions import Hints
from fourreal.conditions.hints import MovedFrames, grid_hints, nearest_given
from fourreal.errors import UserError
from fourreal.grid import Known, shown, to_unit
from fourreal.motion.moved import moved_frames, route
from fourreal.scene import Scene


def ranks(*shape) -> np.ndarray:
    """Every value is its own place, so that any wrong order shows."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_nearest_given_frame_is_that_of_a_search_for_every_mask(frames):
    masks = np.array([[number >> f & 1 for f in range(frames)] for number in range(2**frames)], bool)
    index, exists = (np.asarray(a) for a in nearest_given(jnp.asarray(masks)))
    for mask, found, any_given in zip(masks, index, exists[:, 0], strict=True):
        assert any_given == mask.any()
        for f in range(frames):
            candidates = [g for g in range(frames) if mask[g]]
            if candidates:
                assert found[f] == min(candidates, key=lambda g: (abs(g - f), g))  # the earlier of two


def nearest(given: np.ndarray, position: int) -> int | None:
    return min(np.flatnonzero(given), key=lambda g: (abs(g - position), g), default=None)


def test_hints_are_the_nearest_given_cells_of_the_own_or_the_nearest_view_and_time():
    x = ranks(4, 3, 4, 2, 2, 3) + 1  # no zero among the pixels
    given = np.random.default_rng(0).random((4, 3, 4)) < 0.3
    given[1], given[2] = False, False
    given[2, 1, 2] = True
    assert not given.any(2).all() and not given.any(1).all()
    hints = np.asarray(grid_hints(jnp.asarray(x), jnp.asarray(given)))
    assert hints.shape == (4, 3, 4, 2, 2, 2, 4)
    for b, v, t in np.ndindex(given.shape):
        if not given[b].any():
            np.testing.assert_array_equal(hints[b, v, t], 0)
            continue
        of_view, of_time = nearest(given[b].any(1), v), nearest(given[b].any(0), t)
        cells = (of_view, nearest(given[b, of_view], t)), (nearest(given[b, :, of_time], v), of_time)
        for slot, (cell, own) in enumerate(zip(cells, (of_view == v, of_time == t), strict=True)):
            np.testing.assert_array_equal(hints[b, v, t, slot, ..., :3], x[b, *cell])
            np.testing.assert_array_equal(hints[b, v, t, slot, ..., 3], own)


def test_default_value_is_made_from_the_given_cells_alone():
    x, given = ranks(1, 2, 3, 2, 2, 3) + 1, np.array([[[True, False, False], [False, True, False]]])
    other = np.where(given[..., None, None, None], x, -5)
    values = (np.asarray(Hints().default(Known(jnp.asarray(frames), jnp.asarray(given)))) for frames in (x, other))
    np.testing.assert_array_equal(*values)


def test_null_is_what_nothing_given_shows():
    x, given = jnp.asarray(ranks(1, 2, 3, 2, 2, 3) + 1), jnp.zeros((1, 2, 3), bool)
    nothing = grid_hints(x, given)
    np.testing.assert_array_equal(Hints().null(nothing + 1), nothing)


def test_validity_of_a_hint_is_that_of_the_pixels_of_the_frame_it_shows():
    rng = np.random.default_rng(3)
    frames, valid = rng.normal(size=(2, 2, 3, 2, 2, 3)).astype(np.float32), rng.random((2, 2, 3, 2, 2)) < 0.5
    given = np.zeros((2, 2, 3), bool)
    given[:, 0] = given[:, :, 0] = True
    hints = np.asarray(Hints().default(Known(jnp.asarray(frames), jnp.asarray(given), valid=jnp.asarray(valid))))
    for b, v, t in np.ndindex(2, 2, 3):
        own_view = (b, v, nearest(given[b, v], t))
        own_time = (b, nearest(given[b, :, t], v), t)
        for slot, cell in enumerate((own_view, own_time)):
            np.testing.assert_array_equal(hints[b, v, t, slot, ..., :3], frames[cell])
            np.testing.assert_array_equal(hints[b, v, t, slot, ..., 3], valid[cell])


def pixels(given: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).integers(256, size=(*given.shape, 32, 32, 3), dtype=np.uint8)


def moved_hints(frames: np.ndarray, given: np.ndarray) -> np.ndarray:
    """All pictures of one grid, as a model sees them."""
    value = MovedFrames(*(x[None] for x in Hints(moved=True).from_frames(frames, given)))
    known = Known(to_unit(jnp.asarray(frames))[None], jnp.asarray(given)[None])
    return np.asarray(Hints(moved=True).filled(value, shown(known))[0])


def nearest_hints(frames: np.ndarray, given: np.ndarray) -> np.ndarray:
    return np.asarray(grid_hints(to_unit(jnp.asarray(frames))[None], jnp.asarray(given)[None])[0])


def test_moved_pictures_stand_beside_the_nearest_and_holes_show_that_of_the_view():
    given = np.zeros((3, 4), bool)
    given[0], given[:, 1] = True, True
    frames = pixels(given)
    hints, nearest = moved_hints(frames, given), nearest_hints(frames, given)
    np.testing.assert_array_equal(hints[:, :, :2], nearest)
    for cell, moved in moved_frames(frames, given).items():
        hole = moved[..., 3] == 0
        own_view = np.broadcast_to(nearest[cell][0, ..., :3], (*hole.shape, 3))
        np.testing.assert_array_equal(hints[cell][2:, ..., :3][hole], own_view[hole])
        np.testing.assert_array_equal(hints[cell][2:, ..., :3][~hole], np.asarray(to_unit(moved[..., :3]))[~hole])
        np.testing.assert_allclose(hints[cell][2:, ..., 3], moved[..., 3] / 255, atol=1e-7)  # one division
        assert 0 < hole.mean() < 1


@pytest.mark.parametrize("cells", [[], [(0, 0)], [(0, 1), (2, 3)]])
def test_cells_that_nothing_can_be_moved_to_have_the_nearest_pictures_twice_bit_for_bit(cells):
    given = np.zeros((3, 4), bool)
    given[tuple(np.array(cells, int).reshape(-1, 2).T)] = True
    frames = pixels(given)
    assert not any(route(given, tuple(cell)) for cell in np.argwhere(~given).tolist())
    hints, nearest = moved_hints(frames, given), nearest_hints(frames, given)
    np.testing.assert_array_equal(hints[:, :, :2], nearest)
    np.testing.assert_array_equal(hints[:, :, 2:], nearest)


def test_examples_are_made_of_the_given_frames_and_the_model_alone_cannot_make_them():
    given = np.zeros((3, 4), bool)
    given[0], given[:, 1] = True, True
    frames = pixels(given)
    example = Hints(moved=True).example(Scene(frames), given, None)
    hidden = Hints(moved=True).example(Scene(np.where(given[..., None, None, None], frames, 9)), given, None)
    np.testing.assert_array_equal(example.pictures, hidden.pictures)
    assert Hints().example(Scene(frames), given, None) is None
    empty = Hints(moved=True).shapes(Scene(frames), given)
    assert [x.shape for x in empty] == [x.shape for x in example] and not empty.found.any()
    with pytest.raises(UserError, match="made outside the model"):
        Hints(moved=True).default(Known(jnp.zeros((1, 3, 4, 8, 8, 3)), jnp.asarray(given)[None]))
    with pytest.raises(UserError, match="uint8 pixels, not of float32"):
        Hints(moved=True).example(Scene(frames.astype(np.float32)), given, None)
    with pytest.raises(UserError, match=r"expected \[3, 4, 4, h, w"):
        Hints(moved=True).check(np.zeros((3, 4, 2, 8, 8, 4)), 3, 4)
    assert Hints(moved=True).check(example, 3, 4) is example
    with pytest.raises(UserError, match=r"moved hints are \[3, 4, 2, 32, 32, 4\]: this model takes \[4, 4, 2"):
        Hints(moved=True).check(example, 4, 4)
    with pytest.raises(UserError, match="its hints do not move"):
        Hints().check(example, 3, 4)
