"""Cameras along named trajectories, against answers worked out by hand."""

import numpy as np
import pytest

from fourreal.geometry.pinhole import project
from fourreal.geometry.trajectories import trajectory

SIZE = (48, 64)
ORIGIN = np.zeros((1, 3))


@pytest.mark.parametrize("text", ["orbit", "orbit:-120", "arc:90", "rise:30", "dolly:0.5", "dolly:-1"])
def test_the_subject_stays_in_the_middle_of_every_view(text):
    cameras = trajectory(text, 5, SIZE)
    for K, c2w in zip(cameras.K, cameras.c2w, strict=True):
        pixel, depth = project(ORIGIN, K, c2w)
        np.testing.assert_allclose(pixel, [[32, 24]], atol=1e-4)
        assert depth > 0.4
    assert cameras.focus == 1 and abs(np.linalg.norm(cameras.c2w[0, :3, 3]) - 1) < 1e-6


def test_amounts_are_degrees_and_shares_of_the_distance():
    def place(text, elevation=20.0):
        x, y, z = trajectory(text, 3, SIZE, elevation=elevation).c2w[-1, :3, 3].astype(float)
        return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))), np.linalg.norm([x, y, z])

    np.testing.assert_allclose(place("orbit:60"), [60, 20, 1], atol=1e-4)
    np.testing.assert_allclose(place("arc:-60"), [-60, 32, 1], atol=1e-4)
    np.testing.assert_allclose(place("rise:20", elevation=-10), [0, 10, 1], atol=1e-4)
    np.testing.assert_allclose(place("dolly:0.3"), [0, 20, 0.7], atol=1e-4)


def test_orbit_to_the_right_moves_the_camera_to_its_own_right():
    c2w = trajectory("orbit:10", 2, SIZE).c2w
    assert (c2w[1, :3, 3] - c2w[0, :3, 3]) @ c2w[0, :3, 0] > 0


def test_field_of_view_spans_the_width():
    K = trajectory("orbit", 2, SIZE, fov=90).K[0]
    np.testing.assert_allclose(K, [[32, 0, 32], [0, 32, 24], [0, 0, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "views", "step"), [("orbit:360", 8, 45), ("orbit:-360", 4, -90), ("orbit:720", 9, 80)]
)
def test_whole_turns_do_not_repeat_the_first_view(text, views, step):
    places = trajectory(text, views, SIZE).c2w[:, :3, 3].astype(float)
    around = np.degrees(np.unwrap(np.arctan2(places[:, 1], places[:, 0])))
    np.testing.assert_allclose(around, step * np.arange(views), atol=1e-4)
    assert min(np.linalg.norm(one - other) for n, one in enumerate(places) for other in places[:n]) > 0.1


@pytest.mark.parametrize("text", ["orbit:359", "arc:360", "orbit:0"])
def test_other_amounts_reach_their_end(text):
    """An arc ends above where it began."""
    amount = float(text.partition(":")[2])
    x, y, _ = trajectory(text, 5, SIZE, elevation=0).c2w[-1, :3, 3].astype(float)
    np.testing.assert_allclose(
        [x, y], np.hypot(x, y) * np.array([np.cos(np.radians(amount)), np.sin(np.radians(amount))]), atol=1e-5
    )
