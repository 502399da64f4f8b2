import numpy as np
import pytest
from made_videos import numbered, write
from PIL import Image

from fourreal.media.videos import write_video
from fourreal.sampling import inputs
from fourreal.sampling.inputs import Placement, parse_placement, place_views, read_grid, read_placements

SHAPE = (3, 4, 8, 8)


def save_clip(path, count, first=0):
    """Frame i is flat grey of level 10 (first + i)."""
    levels = 10 * (first + np.arange(count))
    np.savez(path, frames=np.broadcast_to(levels[:, None, None, None], (count, 8, 8, 3)).astype(np.uint8))
    return str(path)


def levels(grid):
    assert (grid == grid[:, :, :1, :1, :1]).all()
    return (grid[:, :, 0, 0, 0].astype(int) // 10).tolist()


@pytest.fixture
def folder(tmp_path):
    save_clip(tmp_path / "video.npz", 4, first=1)
    save_clip(tmp_path / "orbit.npz", 3, first=1)
    save_clip(tmp_path / "long.npz", 13)
    Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / "photo.png")
    return tmp_path


def read(folder, *texts, **options):
    return read_placements([parse_placement(f"{folder}/{text}") for text in texts], SHAPE, **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4@v=0", Placement("a.mp4", 0, None)),
        ("a.mp4@t=12", Placement("a.mp4", None, 12)),
        ("a.png@v=3,t=5", Placement("a.png", 3, 5)),
        ("a.png@t=5,v=3", Placement("a.png", 3, 5)),
        ("me@home/b@v=1.mp4@v=2", Placement("me@home/b@v=1.mp4", 2, None)),
    ],
)
def test_place_is_read_after_the_last_at_sign(text, expected):
    assert parse_placement(text) == expected


@pytest.mark.parametrize(
    "text",
    ["a.mp4", "a@b.mp4", "a.mp4@", "@v=0", "a@v=", "a@v=-1", "a@v=0,v=1", "a@v=0;t=1", "a@x=0", "a@v=0,", "a@v=0t=1"],
)
def test_a_given_that_does_not_say_where_is_refused(text):
    with pytest.raises(ValueError, match="it does not say where"):
        parse_placement(text)


def test_clips_and_pictures_land_in_their_cells(folder):
    result = read(folder, "video.npz@v=0", "orbit.npz@t=0", "photo.png@v=2,t=3")
    assert levels(result.frames) == [[1, 2, 3, 4], [2, 0, 0, 0], [3, 0, 0, 20]]
    assert result.given.tolist() == [[True] * 4, [True, False, False, False], [True, False, False, True]]
    assert result.truth is None and result.name == "video"


def test_the_first_named_clip_wins_where_video_and_orbit_cross(folder):
    save_clip(folder / "other.npz", 3, first=4)
    result = read(folder, "other.npz@t=0", "video.npz@v=1")
    assert levels(result.frames) == [[4, 0, 0, 0], [5, 2, 3, 4], [6, 0, 0, 0]]
    (note,) = result.notes
    assert "cell v=1,t=0 is in both" in note and "other.npz@t=0 is used" in note and "they differ" not in note  # 16 dB


def test_a_crossing_that_shows_something_else_is_warned_about(folder):
    save_clip(folder / "other.npz", 3, first=20)
    assert "they differ there (2.6 dB)" in read(folder, "video.npz@v=0", "other.npz@t=0").notes[0]  # 190 levels apart


@pytest.mark.parametrize(("frames", "expected"), [(None, 3 * 30 / 11), ("2:8", 3 * 30 / 5)])
def test_what_moves_in_chosen_frames_is_as_fast_as_in_the_video(folder, frames, expected):
    write_video(folder / "long.mp4", np.zeros((12, 8, 8, 3), np.uint8), fps=30)
    assert read(folder, "orbit.npz@t=0", "long.mp4@v=0", frames=frames).fps == pytest.approx(expected)
    assert read(folder, "long.mp4@t=0", frames=frames).fps is None  # its frames are views
    assert read(folder, "video.npz@v=0").fps is None


def test_views_of_other_rates_show_the_same_moments_and_one_line_says_so(tmp_path):
    """Frames of levels 20 apart: 30 frames a second for 13 frames and 10 for 5; both last 0.4 s."""
    for name, count, rate in (("a.mp4", 13, 30), ("b.mp4", 5, 10)):
        frames = np.broadcast_to((20 * np.arange(count))[:, None, None, None], (count, 8, 8, 3)).astype(np.uint8)
        write_video(tmp_path / name, frames, rate)
    placements, _ = place_views(str(tmp_path), 3)
    result = read_placements(placements, SHAPE)
    numbers = np.rint(result.frames[:2].mean((2, 3, 4)) / 20).tolist()
    assert numbers == [[0, 4, 8, 12], [0, 1, 3, 4]]  # moments 0, 0.133, 0.267, 0.4
    assert sum("aligned by time" in note for note in result.notes) == 1
    assert result.fps == pytest.approx(3 / 0.4)


@pytest.mark.parametrize(("times", "words"), [([0, 100, 200, 1000], "0.1 to 0.8 s apart"), ([0, 100, 200, 400], None)])
def test_frames_that_are_taken_whole_at_uneven_times_are_said(tmp_path, times, words):
    write(tmp_path / "a.mkv", numbered(4), times=times)
    notes = read(tmp_path, "a.mkv@v=0", crop="pad").notes
    assert [words in note for note in notes] == ([True] if words else [])


@pytest.mark.parametrize(("crop", "notes"), [("center", 1), ("pad", 0)])
def test_a_crop_of_more_than_a_tenth_is_said_for_clips_and_grids(tmp_path, crop, notes):
    Image.new("RGB", (16, 9)).save(tmp_path / "wide.png")
    Image.new("RGB", (17, 16)).save(tmp_path / "square.png")
    np.savez(tmp_path / "grid.npz", frames=np.zeros((3, 4, 16, 9, 3), np.uint8))
    given = read(tmp_path, "wide.png@v=0,t=0", "square.png@v=1,t=1", crop=crop).notes
    assert len(given) == notes and all("wide.png: 44% of the width is cut away to fit 8x8" in note for note in given)
    grid = read_grid(str(tmp_path / "grid.npz"), SHAPE, crop=crop).notes
    assert len(grid) == notes and all("grid.npz: 44% of the height" in note for note in grid)


@pytest.mark.parametrize("second", ["photo.png@v=0,t=2", "video.npz@v=0"])
def test_a_cell_given_twice_is_an_error_that_names_both(folder, second):
    with pytest.raises(ValueError, match=rf"given twice, by .*video\.npz@v=0 and by .*{second.split('.')[0]}"):
        read(folder, "video.npz@v=0", second)


@pytest.mark.parametrize(
    ("place", "words"),
    [("v=3", "no view 3; the grid has views 0 to 2"), ("v=0,t=4", "no time 4; the grid has times 0 to 3")],
)
def test_a_place_outside_the_grid_is_refused(folder, place, words):
    with pytest.raises(ValueError, match=words):
        read(folder, f"video.npz@{place}")


def test_a_longer_video_is_spread_and_one_line_says_so(folder):
    result = read(folder, "long.npz@v=1")
    assert levels(result.frames)[1] == [0, 4, 8, 12]
    assert result.notes == ("long.npz: 13 frames -> 0, 4, 8, 12",)
    assert levels(read(folder, "long.npz@v=1", frames="3:13:2").frames)[1] == [3, 5, 7, 9]


def test_frames_range_leaves_clips_of_the_right_length_alone(folder):
    result = read(folder, "orbit.npz@t=0", "long.npz@v=0", frames="5:9")
    assert [row[0] for row in levels(result.frames)] == [1, 2, 3]


def test_a_short_video_is_an_error_before_anything_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(inputs, "read_frames", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"orbit\.npz: 3 frames, but 4 are needed"):
        read(folder, "video.npz@v=0", "orbit.npz@v=1")


def test_views_folder_fills_consecutive_views_in_natural_order(tmp_path):
    for index in (10, 2):
        save_clip(tmp_path / f"cam{index}.npz", 4, first=index)
    (tmp_path / "poses_bounds.npy").write_bytes(b"x")
    placements, line = place_views(str(tmp_path), 3)
    assert line == f"{tmp_path}: cam2.npz -> view 0, cam10.npz -> view 1"
    assert levels(read_placements(placements, SHAPE).frames)[:2] == [[2, 3, 4, 5], [10, 11, 12, 13]]
    assert place_views(f"{tmp_path}/cam1*.npz", 3)[0] == [Placement(f"{tmp_path}/cam10.npz", 0, None)]


def test_views_folder_may_hold_one_folder_of_pictures_per_view(tmp_path):
    for view in ("cam00", "cam01"):
        (tmp_path / view).mkdir()
        for time in range(4):
            Image.new("RGB", (8, 8), (10 * time,) * 3).save(tmp_path / view / f"{time}.png")
    placements, _ = place_views(str(tmp_path), 3)
    assert levels(read_placements(placements, SHAPE).frames) == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]]


def test_too_many_views_and_none_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no videos there"):
        place_views(str(tmp_path), 3)
    for index in range(4):
        save_clip(tmp_path / f"{index}.npz", 4)
    with pytest.raises(ValueError, match="4 videos, but the checkpoint has 3 views"):
        place_views(str(tmp_path), 3)


def save_grid(path, views=6, times=4, size=8, **arrays):
    codes = 10 * (times * np.arange(views)[:, None] + np.arange(times))
    frames = np.broadcast_to(codes[:, :, None, None, None], (views, times, size, size, 3)).astype(np.uint8)
    np.savez(path, frames=frames, **arrays)
    return str(path)


def cameras(views, size=8):
    K = np.tile(np.array([[100, 0, size / 2], [0, 100, size / 2], [0, 0, 1]], np.float32), (views, 1, 1))
    c2w = np.tile(np.eye(4, dtype=np.float32), (views, 1, 1))
    c2w[:, 0, 3] = np.arange(views)
    return {"K": K, "c2w": c2w}


def test_grid_gives_view_0_and_time_0_and_hides_the_rest(tmp_path):
    result = read_grid(save_grid(tmp_path / "unit.npz", views=3), SHAPE)
    assert levels(result.truth) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert levels(result.frames) == [[0, 1, 2, 3], [4, 0, 0, 0], [8, 0, 0, 0]]
    assert result.given.sum() == 6 and result.given[0].all() and result.given[:, 0].all()
    assert result.name == "unit" and result.K is None


def test_a_larger_grid_is_thinned_evenly_with_its_cameras(tmp_path):
    result = read_grid(save_grid(tmp_path / "g.npz", views=5, **cameras(5)), SHAPE)
    assert [row[0] for row in levels(result.truth)] == [0, 8, 16]
    assert result.c2w[:, 0, 3].tolist() == [0, 2, 4]
    assert result.notes == ("g.npz: 5 views -> 0, 2, 4",)


def test_intrinsics_follow_the_pixels_when_a_grid_is_resized(tmp_path):
    path = tmp_path / "g.npz"
    frames = np.zeros((3, 4, 40, 60, 3), np.uint8)
    frames[..., 20:24, 40:44, :] = 255  # a mark around x = 42, y = 22
    K = np.tile(np.array([[50, 0, 42], [0, 50, 22], [0, 0, 1]], np.float32), (3, 1, 1))  # the optical axis meets it
    np.savez(path, frames=frames, K=K, c2w=np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)))
    for crop in ("center", "pad"):
        result = read_grid(str(path), (3, 4, 20, 20), crop=crop)
        weight = result.truth[0, 0, ..., 0].astype(float)
        middle = [(weight.sum(axis) * (np.arange(20) + 0.5)).sum() / weight.sum() for axis in (0, 1)]
        scale = 20 / 40 if crop == "center" else 20 / 60
        # Pillow rounds the padded picture's 13.3 rows to 13, which moves the mark by up to half a pixel.
        assert np.allclose(result.K[0, :2, 2], middle, atol=0.02 if crop == "center" else 0.5)
        assert np.allclose(result.K[0, 0, 0], 50 * scale)


def test_bundled_grids_are_found_by_name_and_the_first_that_is_as_large_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "GRIDS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no bundled test grid has 3 views x 4 times of 8 x 8"):
        read_grid(None, SHAPE)
    for name in ("wolf", "archer"):
        save_grid(tmp_path / f"{name}.npz")
    assert read_grid(None, SHAPE).name == "archer"
    save_grid(tmp_path / "ant.npz", views=2)
    assert read_grid(None, SHAPE).name == "archer"
    assert read_grid("wolf", SHAPE).name == "wolf"
    with pytest.raises(FileNotFoundError, match=r"bundled grid \(ant, archer, wolf\); did you mean wolf\?"):
        read_grid("wolff", SHAPE)


def test_grids_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 views, but the checkpoint's grid has 3"):
        read_grid(save_grid(tmp_path / "small.npz", views=2), SHAPE)
    with pytest.raises(ValueError, match="`K` is "):
        read_grid(save_grid(tmp_path / "k.npz", K=np.eye(3)), SHAPE)
    np.savez(tmp_path / "clip.npz", frames=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"`frames` is uint8 \[3, 8, 8, 3\]; expected"):
        read_grid(str(tmp_path / "clip.npz"), SHAPE)
    np.savez(tmp_path / "pickled.npz", frames=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("pickled", "text"):
        with pytest.raises(ValueError, match=rf"{name}\.npz: cannot be read as npz"):
            read_grid(str(tmp_path / f"{name}.npz"), SHAPE)
