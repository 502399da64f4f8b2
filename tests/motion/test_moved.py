"""Frames moved along flow: on scenes whose points are known, for every kind of mask, by a search for the rectangle."""

import functools
import itertools

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fourreal.data.masks import MaskMix, sample_given
from fourreal.motion.moved import Route, error, moved_frames, route
from fourreal.motion.optical_flow import flow

SIZE, GRID = 128, (4, 5)
GROUND, OBJECT = (0.0, 2.0), (0.0, 5.0)  # what a view shifts them by, down and right
STEP = np.array([2.0, 3.0])  # what a time moves the object by
BOX = (44, 84)  # where the object is in cell (0, 0), both ways


class Analytic:
    """A textured square that moves before a textured ground that stands, both shifted by views, each by its own."""

    def __init__(self):
        rng = np.random.default_rng(0)
        textures = (gaussian_filter(rng.normal(size=(256, 256, 3)), (2, 2, 0)) * 500 + 128 for _ in range(2))
        self.textures = [texture.clip(0, 255) for texture in textures]
        cells = list(itertools.product(*map(range, GRID)))
        self.frames = np.zeros((*GRID, SIZE, SIZE, 3), np.uint8)
        self.places = np.zeros((*GRID, SIZE, SIZE, 3), np.uint8)
        for cell in cells:
            self.frames[cell], self.places[cell] = self.seen(cell)

    def offset(self, thing: int, cell: tuple[int, int]) -> np.ndarray:
        """Where a point of the ground (0) or the object (1) is in a cell, less where it is in cell (0, 0)."""
        return cell[0] * np.array((GROUND, OBJECT)[thing]) + thing * cell[1] * STEP

    def seen(self, cell):
        """(the frame of a cell, the place in cell (0, 0) of the point at each pixel, and whose it is: 100 the object)."""
        y, x = np.mgrid[:SIZE, :SIZE]
        frame, place = np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE, 3))
        for thing in (0, 1):
            at = np.stack([y, x]) - self.offset(thing, cell)[:, None, None]
            inside = ((at >= BOX[0]) & (at < BOX[1])).all(0) | (thing == 0)
            row, column = (at + 64).astype(int)
            frame[inside] = self.textures[thing][row, column][inside]
            place[inside] = np.stack([*(at + 64), np.full_like(y, 100 * thing)], -1)[inside]
        return frame.astype(np.uint8), place.astype(np.uint8)

    def flow(self, a, b):
        """F[a -> b], exactly."""
        thing = (self.places[a][..., 2] > 50).astype(int)
        moves = np.stack([self.offset(each, b) - self.offset(each, a) for each in (0, 1)])[thing]
        return moves[..., ::-1].astype(np.float32)

    def shown(self, cell, source):
        """The pixels of a cell whose point the source shows, too."""
        thing = (self.places[cell][..., 2] > 50).astype(int)
        move = np.stack([self.offset(each, source) - self.offset(each, cell) for each in (0, 1)])[thing]
        y, x = (np.mgrid[:SIZE, :SIZE] + move.transpose(2, 0, 1)).astype(int)
        inside = (y >= 0) & (y < SIZE) & (x >= 0) & (x < SIZE)
        there = self.places[source][y.clip(0, SIZE - 1), x.clip(0, SIZE - 1), 2] > 50
        return inside & (there == (thing == 1))


@functools.cache
def scene() -> Analytic:
    return Analytic()


def view_and_time() -> np.ndarray:
    given = np.zeros(GRID, bool)
    given[0], given[:, 0] = True, True
    return given


def pairs_only() -> np.ndarray:
    """The first and the last time of every view but one: the cells between them have no rectangle of a third time."""
    given = np.zeros(GRID, bool)
    given[1, 0], given[1, -1] = True, True
    return given


@pytest.mark.parametrize("given", [view_and_time(), pairs_only()], ids=["rectangles", "pairs"])
@pytest.mark.parametrize("found", ["analytic", "DIS"])
def test_moved_pixels_are_within_one_of_where_they_belong_and_most_that_a_source_shows_are_valid(given, found):
    """What is moved are pictures of places, along the flow of the textured frames."""
    own = scene()
    flows = own.flow if found == "analytic" else functools.cache(lambda a, b: flow(own.frames[a], own.frames[b]))
    moved = moved_frames(own.places, given, flow=flows)
    right, valid_pixels, kept, shown_pixels, holes = 0, 0, 0, 0, 0
    for cell, pictures in moved.items():
        for picture, source in zip(pictures, route(given, cell).sources, strict=True):
            valid = picture[..., 3] >= 128
            off = np.abs(picture[..., :3].astype(int) - own.places[cell]).max(-1)
            right, valid_pixels = right + (off[valid] <= 1).sum(), valid_pixels + valid.sum()
            shown = own.shown(cell, source)
            kept, shown_pixels = kept + (valid & shown).sum(), shown_pixels + shown.sum()
            holes += (picture[..., 3] == 0).sum()
            assert not picture[picture[..., 3] == 0].any()
    assert len(moved) == (~given).sum() if given[0, 0] else len(moved) == GRID[1] - 2
    assert right / valid_pixels >= 0.98
    assert kept / shown_pixels >= 0.8
    assert holes > 0


def test_static_pixels_of_a_still_scene_stay_as_they_are():
    own = scene()
    frames, given = np.broadcast_to(own.frames[0, 0], (2, 3, SIZE, SIZE, 3)), view_and_time()[:2, :3]
    for pictures in moved_frames(frames, given).values():
        for picture in pictures:
            np.testing.assert_array_equal(picture[..., :3], own.frames[0, 0])
            assert (picture[..., 3] == 255).all()


@pytest.mark.parametrize("seed", range(8))
def test_route_is_that_of_a_search(seed):
    given = np.random.default_rng(seed).random((4, 6)) < (0.15, 0.3)[seed % 2]
    views, times = given.shape
    for v, t in np.argwhere(~given):
        corners = [
            (w, s)
            for w in range(views)
            for s in range(times)
            if given[w, s] and given[v, s] and given[w, t] and w != v and s != t
        ]
        found = route(given, (v, t))
        if corners:
            best = min(corners, key=lambda c: (abs(c[0] - v) / views + abs(c[1] - t) / times, c))
            assert found == Route(((v, best[1]), (best[0], t)), best)
            continue
        across = [w for w in range(views) if given[w, t]]
        along = [s for s in range(times) if given[v, s]]
        pairs = []
        for places, place, count, at in ((across, v, views, 0), (along, t, times, 1)):
            before, after = [p for p in places if p < place], [p for p in places if p > place]
            if before and after:
                low, high = before[-1], after[0]
                ends = [(low, t), (high, t)] if at == 0 else [(v, low), (v, high)]
                pairs.append(((high - low) / count, at, Route(tuple(ends), None, (place - low) / (high - low))))
        assert found == (min(pairs)[2] if pairs else None)


def test_only_given_frames_are_read_and_invalid_pixels_go_nowhere():
    own, given = scene(), view_and_time()
    hidden = np.where(given[..., None, None, None], own.frames, 77)
    first, second = moved_frames(own.frames, given), moved_frames(hidden, given)
    assert first.keys() == second.keys() == {tuple(cell) for cell in np.argwhere(~given)}
    for cell, pictures in first.items():
        np.testing.assert_array_equal(second[cell], pictures)
    valid = np.ones((*GRID, SIZE, SIZE), bool)
    valid[1, 0, :, :64] = False
    cut = moved_frames(own.frames, given, valid, flow=own.flow)[1, 1]
    whole = moved_frames(own.frames, given, flow=own.flow)[1, 1]
    assert (cut[0, :, :60, 3] > 0).mean() < 0.1 < 0.9 < (whole[0, :, :60, 3] > 0).mean()  # the object moves in by 3
    np.testing.assert_array_equal(cut[0, :, 70:], whole[0, :, 70:])
    np.testing.assert_array_equal(cut[1], whole[1])


def test_reversed_views_only_reindex():
    own, given = scene(), view_and_time()
    moved = moved_frames(own.frames, given)
    turned = moved_frames(own.frames[::-1], given[::-1])
    for (v, t), pictures in moved.items():
        np.testing.assert_array_equal(turned[GRID[0] - 1 - v, t], pictures)


@pytest.mark.parametrize("kind", MaskMix.__dataclass_fields__)
def test_every_mask_of_the_mix_moves_what_has_a_route_and_nothing_else(kind):
    own, rng = scene(), np.random.default_rng(0)
    mix = MaskMix(**{name: float(name == kind) for name in MaskMix.__dataclass_fields__})
    small = np.stack(
        [[cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in row] for row in own.frames]
    )
    for _ in range(3):
        given = sample_given(rng, *GRID, mix)
        moved = moved_frames(small, given)
        cells = map(tuple, np.argwhere(~given).tolist())
        assert moved.keys() == {cell for cell in cells if route(given, cell)}
        for pictures in moved.values():
            assert pictures.shape == (2, 32, 32, 4) and pictures.dtype == np.uint8
            assert (pictures[..., 3] > 0).mean() > 0.5


def test_error_is_that_of_the_check_and_flow_that_leaves_has_none():
    there, back = np.zeros((4, 4, 2), np.float32), np.zeros((4, 4, 2), np.float32)
    there[1, 1] = 1, 0
    back[1, 2] = -0.5, 0
    there[2, 3] = 1, 0
    found = error(there, back)
    assert found[1, 1] == pytest.approx(0.25 / (0.0006 * 1.25 + 0.03))
    assert found[0, 0] == 0 and found[2, 3] > 100


def test_flow_does_not_depend_on_the_number_of_threads():
    own, before = scene(), cv2.getNumThreads()
    try:
        found = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            found.append(flow(own.frames[0, 0], own.frames[1, 0]))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*found)
