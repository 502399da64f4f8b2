"""Frames are chosen by when they are shown. Each frame tells its number, and each file's times are written down here."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from made_videos import numbered, numbers, write
from PIL import Image

from fourreal.errors import UserError
from fourreal.media import videos
from fourreal.media.clips import Clip, choose_frames, choose_together, open_clip, read_frames

UNEVEN = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1900, 2900]  # ms: ten frames a second, then one


def nearest(times, moments):
    """By comparing each frame with each moment; the first of equally near ones."""
    return [min(range(len(times)), key=lambda n: (round(abs(times[n] - moment), 6), n)) for moment in moments]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.nut"])
def test_a_variable_frame_rate_is_spread_evenly_in_time(tmp_path, name):
    clip = open_clip(write(tmp_path / name, numbered(12), times=UNEVEN))
    assert clip.times == pytest.approx(np.array(UNEVEN) / 1000)
    chosen = choose_frames(clip, 4)
    assert (
        chosen == nearest(UNEVEN, [0, 2900 / 3, 5800 / 3, 2900]) == [0, 9, 10, 11]
    )  # by number it would be 0, 4, 7, 11
    assert numbers(read_frames(clip, chosen, (32, 48), "center")) == chosen


def test_the_times_of_an_animated_picture_count(tmp_path):
    frames = [Image.fromarray(frame) for frame in numbered(6, step=20)]
    lasts = [100, 100, 100, 1000, 1000, 100]  # frame 4 begins at 1300 ms, frame 5 at 2300
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=lasts, **options)
        clip = open_clip(str(tmp_path / name))
        assert clip.times == pytest.approx([0, 0.1, 0.2, 0.3, 1.3, 2.3])
        assert choose_frames(clip, 3) == [0, 4, 5]  # the middle is at 1.15


def test_a_still_picture_and_npz_tell_no_time(tmp_path):
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", frames=numbered(6))
    assert open_clip(str(tmp_path / "a.png")).times is None
    clip = open_clip(str(tmp_path / "a.npz"))
    assert clip.times is None and choose_frames(clip, 3) == [0, 2, 5]
    with pytest.raises(UserError, match="does not tell its times; give numbers of frames"):
        choose_frames(clip, 3, "0s:1s")


@pytest.mark.parametrize(
    ("frames", "moments"),
    [
        ("2s:4.5s", np.linspace(60, 134, 4)),  # 4.5 s, frame 135, is left out
        ("2s:", np.linspace(60, 149, 4)),
        (":1s", np.linspace(0, 29, 4)),
        ("1s:4s:0.5s", [30, 45, 60, 75]),
        ("0.1s:5s:1s", [3, 33, 63, 93]),
        ("-1s:", np.linspace(119, 149, 4)),  # of the last frame's 4.9667 s
        ("60:135", np.linspace(60, 134, 4)),
        ("60::15", [60, 75, 90, 105]),
    ],
)
def test_seconds_and_numbers_choose_the_same_frames_at_30_a_second(frames, moments):
    clip = Clip("a.mp4", "video", 150, times=tuple(n / 30 for n in range(150)))
    assert choose_frames(clip, 4, frames) == nearest(range(150), moments)


def test_seconds_are_those_of_29_97_frames_a_second(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", numbered(50), rate=Fraction(30000, 1001)))
    assert choose_frames(clip, 2, "1.001s:") == [30, 49]
    assert choose_frames(clip, 2, "1.0011s:") == [31, 49]


@pytest.mark.parametrize("frames", ["2s:4", "2:4s", "0s:1s:0s", "1s", "s:s", "0s:1s:-1s", "0s:nans", "1e3s:"])
def test_malformed_seconds_are_refused(frames):
    with pytest.raises(UserError, match=r"expected a:b or a:b:step.* in seconds 2s:4\.5s"):
        choose_frames(Clip("a.mp4", "video", 9, times=tuple(range(9))), 4, frames)


def test_seconds_that_leave_too_few_frames_say_how_many():
    clip = Clip("a.mp4", "video", 9, times=tuple(range(9)))
    for frames, left in (("2s:4s", 2), ("20s:30s", 0), ("0s:9s:3s", 3)):
        with pytest.raises(UserError, match=f"9 frames, and --frames {frames} leaves {left}, but 4 are needed"):
            choose_frames(clip, 4, frames)


def test_views_of_other_rates_are_read_at_the_same_moments(tmp_path):
    """30 and 10 frames a second: 12 and 4 frames in 0.4 s; moments 0, 0.1, 0.2, 0.3 are frames 0, 3, 6, 9 and 0, 1, 2, 3."""
    clips = [
        open_clip(write(tmp_path / f"{rate}.mp4", numbered(count), rate=rate)) for rate, count in ((30, 12), (10, 4))
    ]
    chosen, line = choose_together(clips, 4)
    assert chosen == [[0, 3, 6, 9], [0, 1, 2, 3]]
    assert "aligned by time" in line and "0.3 s" in line and "30.mp4 0.366667 s, 10.mp4 0.3 s" in line


def test_views_of_other_lengths_are_cut_to_what_all_show(tmp_path):
    clips = [open_clip(write(tmp_path / f"{count}.mp4", numbered(count), rate=10)) for count in (10, 7, 25)]
    chosen, line = choose_together(clips, 3)
    assert chosen == [[0, 3, 6]] * 3 and "0.6 s after it" in line
    assert choose_together(clips, 3, "1:6")[0] == [[1, 3, 5]] * 3
    assert choose_together(clips, 2, "0.2s:0.6s")[0] == [[2, 5]] * 3


def test_views_of_uneven_and_even_rates_meet_in_time():
    even = Clip("a.mp4", "video", 30, times=tuple(n / 10 for n in range(30)))
    uneven = Clip("b.mp4", "video", 12, times=tuple(n / 1000 for n in UNEVEN))
    moments = np.linspace(0, 2.9, 4)
    chosen, line = choose_together([even, uneven], 4)
    assert chosen == [nearest(even.times, moments), nearest(uneven.times, moments)] and line


def test_folders_of_other_lengths_are_cut_to_what_all_hold():
    clips = [Clip(name, "pictures", count) for name, count in (("a", 9), ("b", 5))]
    chosen, line = choose_together(clips, 3)
    assert chosen == [[0, 2, 4]] * 2 and "4 frames" in line


def test_views_that_are_alike_are_chosen_as_one_alone_without_a_word():
    exact = Clip("a.mp4", "video", 30, times=tuple(n / 30 for n in range(30)))
    rounded = Clip("b.mkv", "video", 30, times=tuple(round(n / 30, 3) for n in range(30)))
    assert choose_together([exact, rounded], 4) == ([choose_frames(exact, 4)] * 2, "")


def test_views_that_cannot_be_aligned_are_refused():
    timed, untimed = Clip("a.mp4", "video", 9, times=tuple(range(9))), Clip("b", "pictures", 5)
    assert choose_together([untimed, timed], 5) == ([[0, 1, 2, 3, 4], [0, 2, 4, 6, 8]], "")  # one picture a time
    for clips in ((timed, untimed), (untimed, timed)):
        with pytest.raises(UserError, match=r"b does not tell when.*a\.mp4 does, so they cannot be aligned"):
            choose_together(clips, 3)
    short = Clip("c.mp4", "video", 3, times=(0, 1, 2))
    with pytest.raises(UserError, match=r"a\.mp4: 9 frames, and the others end before that, but 4 are needed"):
        choose_together([timed, Clip("d.mp4", "video", 40, times=tuple(n / 20 for n in range(40)))], 4)
    with pytest.raises(UserError, match=r"c\.mp4: 3 frames, but 4 are needed"):
        choose_together([timed, short], 4)


CONTAINERS = {  # every way that containers keep time: index, clusters, packets without an index, no times at all
    "a.mp4": {},
    "a.mkv": {},
    "a.mov": {"codec": "prores_ks", "stored": "yuv422p10le"},
    "a.ts": {"stored": "yuv420p"},
    "a.mpg": {"codec": "mpeg2video", "stored": "yuv420p", "options": {"bf": "2", "qmin": "1", "qmax": "1"}},
    "a.avi": {"codec": "mpeg4", "stored": "yuv420p", "options": {"bf": "2", "qmin": "1", "qmax": "1"}},
    "b.avi": {"codec": "mjpeg", "stored": "yuvj420p"},
    "a.webm": {"codec": "libvpx-vp9", "stored": "yuv420p"},
    "a.h264": {"stored": "yuv420p"},
    "a.flv": {"codec": "flv1", "stored": "yuv420p"},
    "open.mp4": {"options": {"x264-params": "keyint=10:open-gop=1:bframes=3", "qp": "0"}},
    "open.ts": {"stored": "yuv420p", "options": {"x264-params": "keyint=10:open-gop=1:bframes=3", "qp": "5"}},
    "short.mkv": {"options": {"x264-params": "keyint=3:bframes=3", "qp": "0"}},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_frame_of_any_container_is_found_exactly(tmp_path, name):
    options = {"options": {"g": "10", "qp": "0"}} if name in ("a.mp4", "a.mkv") else {}
    clip = open_clip(write(tmp_path / name, numbered(45), **{**options, **CONTAINERS[name]}))
    assert clip.count == 45
    for wanted in ([0], [44], [23], [1, 9, 10, 11, 19, 31, 44], range(45)):
        assert numbers(read_frames(clip, wanted, (32, 48), "center")) == list(wanted)


def test_only_the_groups_of_the_chosen_frames_are_decoded(tmp_path, monkeypatch):
    """Keyframes each 10 frames: frames 25 and 72 need at most 6 and 3 of them, and what the decoder holds back: 16 or so."""
    path = write(tmp_path / "a.mp4", numbered(51, step=5).repeat(2, 0), options={"g": "10", "bf": "0", "qp": "0"})
    clip, sent = open_clip(path), itertools.count()
    decode = videos._decode
    monkeypatch.setattr(videos, "_decode", lambda *given: (next(sent), decode(*given))[1])
    read_frames(clip, [25, 72], (32, 48), "center")
    assert next(sent) < 60


def test_a_recording_that_begins_between_keyframes_counts_what_can_be_shown(tmp_path):
    """The first group of a transport stream is lost: frames 10 to 44 remain."""
    path = tmp_path / "a.ts"
    write(path, numbered(45), stored="yuv420p", options={"x264-params": "keyint=10:bframes=0:scenecut=0", "qp": "5"})
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    pid = next(p for p in packets if p[1] & 0x40 and p[4 + (p[4] + 1 if p[3] & 0x20 else 0) :][:4] == b"\0\0\1\xe0")[
        1:3
    ]
    starts = [n for n, p in enumerate(packets) if p[1] & 0x40 and p[1:3] == pid]
    path.write_bytes(b"".join(packets[: starts[0]] + packets[starts[3] :]))  # without frames 0 to 2
    clip = open_clip(str(path))
    assert clip.count == 35
    assert numbers(read_frames(clip, [0, 34], (32, 48), "center")) == [10, 44]
