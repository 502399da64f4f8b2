"""Consistency where geometry and motion are known: a textured wall before cameras that move to the right, a moving texture."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fourreal.metrics.consistency import Surface, reprojection, warp_and_flicker

SIDE, VIEWS, TIMES, DEPTH, FOCAL = 32, 3, 2, 4.0, 32.0
STEP = 2  # pixels that the wall shifts to the left from view to view: FOCAL * 0.25 / DEPTH
GIVEN = np.zeros((VIEWS, TIMES), bool)
GIVEN[0], GIVEN[:, 0] = True, True


@pytest.fixture
def wall() -> tuple[np.ndarray, Surface]:
    """(frames, their surface): all of it subject, the same at both times."""
    texture = np.random.default_rng(0).integers(256, size=(SIDE, SIDE + 2 * STEP, 3), dtype=np.uint8)
    frames = np.stack([[texture[:, STEP * v : STEP * v + SIDE]] * TIMES for v in range(VIEWS)])
    K = np.tile(np.array([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1]]), (VIEWS, 1, 1))
    c2w = np.tile(np.eye(4), (VIEWS, 1, 1))
    c2w[:, 0, 3] = 0.25 * np.arange(VIEWS)
    shape = (VIEWS, TIMES, SIDE, SIDE)
    return frames, Surface(np.full(shape, DEPTH), np.ones(shape, bool), K, c2w)


def test_the_truth_reprojects_onto_itself_and_a_wrong_view_by_as_much_as_it_is_off(wall):
    frames, surface = wall
    assert reprojection(frames, GIVEN, surface) == pytest.approx({"seen": 0, "unseen": 0}, abs=1e-9)
    wrong = frames.copy()
    wrong[2, 1] = 255 - frames[2, 1]
    found = reprojection(wrong, GIVEN, surface)
    # of view 1, what view 2 shows are columns 2 to 31; view 0 shows columns 0 to 29 of view 1
    off = np.abs(255 - 2.0 * frames[1, 1][:, STEP:]).mean(-1)
    right = np.zeros((SIDE, SIDE - STEP))  # pair of views 0 and 1
    assert found["seen"] == pytest.approx(np.concatenate([off[:, :-STEP].ravel(), right.ravel()]).mean())
    assert found["unseen"] == pytest.approx(off[:, -STEP:].mean())


def test_given_pairs_hidden_points_and_other_pixels_do_not_count(wall):
    frames, surface = wall
    wrong = frames.copy()
    wrong[:, 0] = 0  # time 0 is given in all views
    wrong[1, 1, :8, 8:16] = 0
    depth, subject = surface.depth.copy(), surface.subject.copy()
    depth[1, :, :8, 8:16] = 1.0  # something stands there before the wall, which no view's subject is
    subject[1, :, :8, 8:16] = False
    found = reprojection(wrong, GIVEN, surface._replace(depth=depth, subject=subject))
    assert found == pytest.approx({"seen": 0, "unseen": 0}, abs=1e-9)
    assert reprojection(wrong, GIVEN, surface)["seen"] > 1
    assert math.isnan(reprojection(wrong, np.ones_like(GIVEN), surface)["seen"])


def test_warp_error_follows_the_truths_motion_and_flicker_looks_at_what_stands_still():
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(80, 80, 3)), (2, 2, 0)) * 600 + 128
    texture = texture.clip(0, 255).astype(np.uint8)
    moving = np.stack([[texture[8 - t : 72 - t, 8 - 2 * t : 72 - 2 * t] for t in range(3)]] * 2)
    given = np.zeros((2, 3), bool)
    given[0] = True
    exact, _ = warp_and_flicker(moving, moving, given)
    frozen, _ = warp_and_flicker(np.repeat(moving[:, :1], 3, axis=1), moving, given)
    assert exact < 2 < 5 < frozen
    still = np.repeat(moving[:, :1], 3, axis=1)
    noisy = still.copy()
    noisy[1] = (still[1] + np.random.default_rng(1).integers(-9, 10, still[1].shape)).clip(0, 255)
    warp, flicker = warp_and_flicker(noisy, still, given)
    assert flicker == pytest.approx(np.abs(np.diff(noisy[1].astype(float), axis=0)).mean()) == pytest.approx(warp)
    assert warp_and_flicker(still, still, given) == (0, 0)
    assert all(math.isnan(value) for value in warp_and_flicker(still, still, np.ones_like(given)))
