import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourreal.geometry.pinhole import look_at, opencv_from_opengl
from fourreal.media.clips import open_clip, read_frames
from fourreal.media.sheet import Panel, animated_picture, contact_sheet
from fourreal.sampling import results as export
from fourreal.sampling.results import (
    GridResult,
    check_destination,
    compared,
    score_table,
    scores,
    transforms,
    write_result,
)

VIEWS, TIMES, SIZE = 3, 4, 16


def given_l():
    given = np.zeros((VIEWS, TIMES), bool)
    given[0, :] = given[:, 0] = True
    return given


def flat_grid():
    """Cell (v, t) is flat grey of level 20 (v TIMES + t)."""
    levels = 20 * np.arange(VIEWS * TIMES).reshape(VIEWS, TIMES, 1, 1, 1)
    return np.broadcast_to(levels, (VIEWS, TIMES, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture
def result():
    K = np.tile(np.array([[20, 0, 8], [0, 21, 7], [0, 0, 1]], np.float32), (VIEWS, 1, 1))
    c2w = np.stack([look_at(np.array([3.0, v - 1.0, 1.0]), np.zeros(3)) for v in range(VIEWS)])
    about = {"options": {"seed": 7, "checkpoint": "nano"}, "weights_hash": "abc"}
    return GridResult("unit", flat_grid(), given_l(), flat_grid(), K, c2w, about)


def rate(clip):
    return (clip.count - 1) / clip.times[-1]


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_folder_holds_exactly_what_the_module_lists(result, tmp_path):
    index = write_result(tmp_path / "out" / "unit", result)
    assert index == tmp_path / "out" / "unit" / "index.html"
    videos = {f"videos/cam{v:02d}.mp4" for v in range(VIEWS)}
    pictures = {f"images/cam{v:02d}/{t:06d}.png" for v in range(VIEWS) for t in range(TIMES)}
    single = {"index.html", "contact.png", "grid.mp4", "grid.npz", "metadata.json", "transforms.json"}
    assert files_in(index.parent) == videos | pictures | single
    assert [path.name for path in index.parent.parent.iterdir()] == ["unit"]


def page_data(folder):
    page = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


@pytest.mark.parametrize("known", [True, False])
def test_page_compares_with_baselines_and_with_the_truth_where_it_is_known(result, tmp_path, known):
    write_result(tmp_path / "unit", result if known else replace(result, truth=None))
    data = page_data(tmp_path / "unit")
    names = ["nearest given frame", "moved hint"] + ["truth"] * known
    assert [panel["title"] for panel in data["panels"]] == ["sampled", *names]
    scored = {name for name in data["about"] if name.startswith("PSNR")}
    assert scored == ({f"PSNR {name}" for name in ("sampled", *names[:2])} if known else set())
    assert {"grid.mp4", "grid.npz", "contact.png", "videos/cam02.mp4"} <= set(data["files"])
    assert set(data["files"]) <= files_in(tmp_path / "unit")


def test_what_the_page_compares_reads_given_cells_only(result):
    other = np.where(result.given[..., None, None, None], result.sampled, 255 - result.sampled)
    for one, two in zip(compared(result)[1:], compared(replace(result, sampled=other))[1:], strict=True):
        assert (one.frames == two.frames).all()
    nearest = compared(result)[1].frames  # the frame of the freeze-time video
    assert (nearest[1:, 1:] == result.sampled[1:, :1]).all()


def test_without_cameras_pictures_and_times_are_written_and_no_pose_is_claimed(result, tmp_path):
    plain = GridResult("unit", result.sampled, result.given)
    write_result(tmp_path / "unit", plain)
    assert set(np.load(tmp_path / "unit" / "grid.npz").files) == {"frames", "given"}
    content = json.loads((tmp_path / "unit/transforms.json").read_text())
    assert content["cameras"].startswith("unknown") and len(content["frames"]) == VIEWS * TIMES
    for frame in content["frames"]:
        assert (tmp_path / "unit" / frame["file_path"]).is_file() and 0 <= frame["time"] <= 1
        assert not {"transform_matrix", "fl_x", "cx"} & frame.keys()


def test_arrays_and_pictures_are_the_sampled_frames_bit_for_bit(result, tmp_path):
    write_result(tmp_path / "unit", result)
    arrays = np.load(tmp_path / "unit" / "grid.npz")
    for name, expected in (("frames", result.sampled), ("given", result.given), ("K", result.K), ("c2w", result.c2w)):
        assert (arrays[name] == expected).all() and arrays[name].dtype == expected.dtype
    assert (np.asarray(Image.open(tmp_path / "unit/images/cam02/000003.png")) == result.sampled[2, 3]).all()


def test_each_view_video_holds_its_frames_once_in_order_at_256_px(result, tmp_path):
    write_result(tmp_path / "unit", result)
    for v in range(VIEWS):
        clip = open_clip(str(tmp_path / f"unit/videos/cam{v:02d}.mp4"))
        frames = read_frames(clip, range(clip.count), (256, 256), "center")
        levels = frames.mean((1, 2, 3))
        assert clip.count == TIMES and np.abs(levels - 20 * (v * TIMES + np.arange(TIMES))).max() < 3  # 8-bit yuv


@pytest.mark.parametrize(("fps", "stored"), [(None, 8), (2.5, 2.5), (30000 / 1001, 30000 / 1001)])
def test_view_videos_keep_the_time_of_the_source_and_the_tiled_one_its_own(result, tmp_path, fps, stored):
    write_result(tmp_path / "unit", replace(result, fps=fps))
    assert rate(open_clip(str(tmp_path / "unit/videos/cam00.mp4"))) == pytest.approx(stored)
    assert json.loads((tmp_path / "unit/metadata.json").read_text())["grid"]["fps"] == pytest.approx(stored)
    tiled = open_clip(str(tmp_path / "unit/grid.mp4"))
    assert rate(tiled) == pytest.approx(8) and tiled.count / 8 >= 3
    told = json.loads((tmp_path / "unit/transforms.json").read_text())
    assert told.get("fps") == fps and told.get("duration") == (fps and pytest.approx((TIMES - 1) / fps))


@pytest.mark.parametrize("fps", [1 / 75, 1000.0])
def test_a_rate_that_no_player_takes_is_kept_in_transforms_and_played_at_8(result, fps):
    slow = replace(result, fps=fps)
    assert slow.played == 8 and transforms(slow)["fps"] == fps


def test_tiled_video_shows_every_view_in_its_place_to_and_fro(result, tmp_path):
    write_result(tmp_path / "unit", result)
    clip = open_clip(str(tmp_path / "unit/grid.mp4"))
    frames = read_frames(clip, range(6), (512, 512), "center").astype(int)
    for step, t in enumerate((0, 1, 2, 3, 2, 1)):
        for v, (down, across) in enumerate(((0, 0), (0, 256), (256, 0))):
            assert abs(frames[step, down + 128, across + 128].mean() - 20 * (v * TIMES + t)) < 4
    assert clip.count >= 4 * 8


def test_transforms_hold_opengl_poses_pixels_and_time_of_each_file(result, tmp_path):
    write_result(tmp_path / "unit", result)
    stored = json.loads((tmp_path / "unit/transforms.json").read_text())
    assert stored == transforms(result)
    assert "OpenGL" in stored["convention"] and stored["orientation_override"] == "none"
    assert len(stored["frames"]) == VIEWS * TIMES
    for number, frame in enumerate(stored["frames"]):
        v, t = divmod(number, TIMES)
        assert frame["file_path"] == f"images/cam{v:02d}/{t:06d}.png"
        assert (tmp_path / "unit" / frame["file_path"]).is_file()
        pose = np.array(frame["transform_matrix"], np.float32)
        assert np.allclose(opencv_from_opengl(pose), result.c2w[v])
        forward = -pose[:3, 2]  # OpenGL looks along -z: towards the scene's middle
        assert np.allclose(forward, -pose[:3, 3] / np.linalg.norm(pose[:3, 3]), atol=1e-6)
        assert pose[2, 1] > 0  # y is up
        assert [frame[key] for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")] == [20, 21, 8, 7, SIZE, SIZE]
        assert frame["time"] == pytest.approx(t / (TIMES - 1))
        assert (frame["camera_label"], frame["frame_label"]) == (f"cam{v:02d}", t)


def test_metadata_is_plain_json_with_settings_and_scores(result, tmp_path):
    write_result(tmp_path / "unit", result)
    stored = json.loads((tmp_path / "unit/metadata.json").read_text(), parse_constant=pytest.fail)
    assert stored["options"]["seed"] == 7 and stored["weights_hash"] == "abc"
    assert len(stored["given"]) == 6 and {"view": 2, "time": 0} in stored["given"]
    assert stored["psnr_db"]["sampled"]["all"] is None  # equal to the truth: infinite, which JSON cannot say
    assert stored["psnr_db"]["copy of the freeze-time frame"]["all"] > 0


def test_scores_compare_the_sample_with_every_baseline(result):
    off = result.sampled.copy()
    off[1:, 1:] = np.clip(off[1:, 1:].astype(int) + 5, 0, 255)
    table = scores(GridResult("unit", off, result.given, result.truth))
    assert table["sampled"]["all"] == pytest.approx(20 * math.log10(255 / 5))
    assert table["sum of the differences"]["all"] == math.inf  # this grid is a sum of a view and a time part
    text = score_table(table, 6)
    assert "6 unknown cells" in text and "34.15" in text and "inf*" in text
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["-"] * 4  # every pixel moves: no static score
    assert scores(GridResult("unit", off, result.given)) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_export_leaves_nothing_behind(result, tmp_path, monkeypatch, error):
    def interrupt(*_):
        raise error

    monkeypatch.setattr(export, "_write_videos", interrupt)
    with pytest.raises(error):
        write_result(tmp_path / "unit", result)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_overwrite_keeps_the_old_folder(result, tmp_path, monkeypatch):
    write_result(tmp_path / "unit", result)
    before = files_in(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_metadata", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path / "unit", result, overwrite=True)
    assert files_in(tmp_path) == before


def test_a_failure_while_the_new_folder_takes_its_place_brings_the_old_one_back(result, tmp_path, monkeypatch):
    write_result(tmp_path / "unit", result)
    (tmp_path / "unit" / "old.txt").write_text("x")
    rename = Path.rename

    def fail_for_the_new_one(path, target):
        if ".partial" in path.name:
            raise OSError("no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no space"):
        write_result(tmp_path / "unit", result, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["unit"] and (tmp_path / "unit" / "old.txt").exists()


def test_an_existing_folder_is_replaced_only_when_told(result, tmp_path):
    write_result(tmp_path / "unit", result)
    (tmp_path / "unit" / "stale.txt").write_text("x")
    with pytest.raises(FileExistsError, match="add --overwrite"):
        write_result(tmp_path / "unit", result)
    write_result(tmp_path / "unit", result, overwrite=True)
    assert "stale.txt" not in files_in(tmp_path / "unit")
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]


def test_overwrite_never_removes_a_folder_that_is_not_ours(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(FileExistsError, match="was not written by fourreal"):
        check_destination(tmp_path / "thesis", overwrite=True)
    (tmp_path / "thesis" / "metadata.json").write_text('{"generator": "other 1.0"}')
    with pytest.raises(FileExistsError, match="was not written by fourreal"):
        check_destination(tmp_path / "thesis", overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        check_destination(tmp_path / "thesis" / "chapter.tex", overwrite=True)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", overwrite=True)


def colour_share(picture, colour):
    return (np.abs(np.asarray(picture.convert("RGB"), int) - colour).max(-1) < 3).mean()


def test_contact_sheet_frames_given_cells_and_hides_unknown_ones():
    given = given_l()
    grid = np.zeros((VIEWS, TIMES, SIZE, SIZE, 3), np.uint8) + np.uint8([0, 200, 0])
    orange = (0xF0, 0x8C, 0x00)
    shown = contact_sheet([Panel("given", grid, shown=given)], given)
    whole = contact_sheet([Panel("sampled", grid)], np.zeros_like(given))
    assert colour_share(shown, orange) > 0.01 and colour_share(whole, orange) == 0
    # 6 of the 12 cells are shown, at equal sizes
    assert colour_share(shown, (0, 200, 0)) == pytest.approx(colour_share(whole, (0, 200, 0)) / 2, rel=0.02)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_animation_loops_over_every_cell_twice_and_is_small(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), dtype=np.uint8)
    path = tmp_path / f"grid.{suffix}"
    animated_picture(path, [Panel("sampled", frames), Panel("truth", frames)], given_l())
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        assert 2 * VIEWS * TIMES - 1 <= animation.n_frames <= 2 * VIEWS * TIMES
    assert path.stat().st_size < 2e6


def test_animation_steps_from_cell_to_neighbouring_cell():
    from fourreal.media.sheet import _walk

    for shape in ((4, 4), (3, 5), (3, 4), (8, 2), (1, 3)):
        cells = [cell for cell, _ in _walk(*shape)]
        for half in (cells[: len(cells) // 2], cells[len(cells) // 2 :]):
            assert sorted(half) == list(np.ndindex(shape))
        assert max(abs(a - c) + abs(b - d) for (a, b), (c, d) in itertools.pairwise(cells)) <= 1
