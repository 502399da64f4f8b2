import struct
import zipfile

import av
import numpy as np
import pytest
from PIL import Image

from fourreal.errors import UserError
from fourreal.media.clips import Clip, choose_frames, open_clip, read_frames
from fourreal.media.videos import write_video


def numbered(count, height=32, width=48):
    """Frames of one flat grey each, 20 levels apart, so that a frame tells its own index."""
    return np.broadcast_to((20 * np.arange(count))[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def indices_of(frames):
    return [round(float(frame.mean()) / 20) for frame in frames]


def read_all(path, size=(32, 48), crop="center"):
    clip = open_clip(str(path))
    return read_frames(clip, range(clip.count), size, crop)


@pytest.fixture
def video(tmp_path):
    write_video(tmp_path / "clip.mp4", numbered(12), fps=8)
    return tmp_path / "clip.mp4"


def test_video_frames_come_back_in_order_and_in_number(video):
    assert open_clip(str(video)).count == 12
    frames = read_all(video)
    assert frames.shape == (12, 32, 48, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - numbered(12)).max() <= 3  # yuv420p in 8 bits with studio range


def test_only_the_chosen_frames_of_a_video_are_read(video):
    assert indices_of(read_frames(open_clip(str(video)), [1, 5, 11], (32, 48), "center")) == [1, 5, 11]


def test_phone_video_with_a_rotation_tag_is_turned_upright(tmp_path):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = 255  # the stored top left corner
    write_video(tmp_path / "phone.mp4", frames, fps=8)
    data = bytearray((tmp_path / "phone.mp4").read_bytes())
    start = data.index(b"tkhd") + 44  # type, flags, five fields, two reserved, layer to reserved: then the 3x3 matrix
    data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    (tmp_path / "phone.mp4").write_bytes(data)
    upright = read_all(tmp_path / "phone.mp4", (64, 32))
    assert upright[0, :8, 24:].min() > 200 and upright[0, :8, :8].max() < 50  # a quarter turn clockwise: top right


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_pictures_give_all_their_frames(tmp_path, suffix):
    pictures = [Image.fromarray(frame) for frame in numbered(5)]
    options = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pictures[1:], duration=100, **options)
    assert indices_of(read_all(tmp_path / f"a.{suffix}")) == [0, 1, 2, 3, 4]


def test_npz_frames_are_exact(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", frames=frames)
    assert (read_all(tmp_path / "a.npz") == frames).all()


def test_folder_and_glob_are_read_in_natural_order_without_hidden_files(tmp_path):
    for index in (10, 2, 1):
        Image.fromarray(numbered(11)[index]).save(tmp_path / f"frame{index}.png")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert indices_of(read_all(tmp_path)) == [1, 2, 10]
    assert indices_of(read_all(f"{tmp_path}/frame*.png")) == [1, 2, 10]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    Image.fromarray(numbered(4)[3]).save(tmp_path / "a[1].png")
    assert indices_of(read_all(tmp_path / "a[1].png")) == [3]


def test_transparent_pictures_are_laid_on_white(tmp_path):
    Image.new("RGBA", (48, 32), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_all(tmp_path / "a.png") == 255).all()


def test_sixteen_bit_grey_keeps_its_levels(tmp_path):
    Image.fromarray(np.full((32, 48), 100 * 256 + 77, np.uint16)).save(tmp_path / "a.png")
    assert (read_all(tmp_path / "a.png") == 100).all()


def clip(count):
    return Clip("clip.mp4", "video", count)


def test_long_clips_are_sampled_evenly_with_first_and_last():
    assert choose_frames(clip(120), 8) == [0, 17, 34, 51, 68, 85, 102, 119]
    assert choose_frames(clip(5), 5) == [0, 1, 2, 3, 4]
    assert choose_frames(clip(9), 1) == [0]


def test_frames_range_overrides_even_sampling():
    assert choose_frames(clip(120), 3, "10:31") == [10, 20, 30]
    assert choose_frames(clip(120), 3, "10:100:5") == [10, 15, 20]
    assert choose_frames(clip(120), 2, "-20:") == [100, 119]
    assert choose_frames(clip(3), 3, "10:100:5") == [0, 1, 2]  # exactly as long as needed: nothing to choose


@pytest.mark.parametrize("frames", ["5", "0:10:0", "0:10:-1", "a:b", "::::", ""])
def test_malformed_frames_range_is_refused(frames):
    with pytest.raises(ValueError, match="expected a:b or a:b:step"):
        choose_frames(clip(120), 4, frames)


def test_too_short_a_clip_is_an_error_that_says_both_counts():
    with pytest.raises(ValueError, match="3 frames, but 4 are needed"):
        choose_frames(clip(3), 4)
    with pytest.raises(ValueError, match="20 frames, and --frames 0:20:10 leaves 2, but 4 are needed"):
        choose_frames(clip(20), 4, "0:20:10")


def test_missing_files_are_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4: there is no such file"):
        open_clip("nowhere.mp4")
    with pytest.raises(FileNotFoundError, match=r"nowhere/\*\.png: no pictures"):
        open_clip("nowhere/*.png")


def damaged_files(folder):
    write_video(folder / "whole.mp4", np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8), fps=8)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "whole.jpg")
    movie, photo = (folder / "whole.mp4").read_bytes(), (folder / "whole.jpg").read_bytes()
    np.savez(folder / "floats.npz", frames=np.zeros((3, 4, 4, 3), np.float32))
    np.savez(folder / "other.npz", pictures=np.zeros((3, 4, 4, 3), np.uint8))
    np.savez(folder / "grid.npz", frames=np.zeros((2, 3, 4, 4, 3), np.uint8))
    np.savez(folder / "pickled.npz", frames=np.array([{"a": 1}], dtype=object))
    with zipfile.ZipFile(folder / "broken.npz", "w") as archive:
        archive.writestr("frames.npy", b"not an array")
    files = {
        "empty.mp4": b"",
        "empty.png": b"",
        "cut_index.mp4": movie[: len(movie) // 2],
        "noise.mp4": bytes(range(256)) * 40,
        "text.txt": b"hello\n" * 400,
        "text.mp4": b"hello\n" * 400,
        "text.png": b"hello\n" * 400,
        "text.npz": b"hello\n" * 400,
        "cut.jpg": photo[: len(photo) // 2],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [*files, "floats.npz", "other.npz", "grid.npz", "pickled.npz", "broken.npz"]


def test_every_damaged_or_wrong_file_is_one_line_that_names_it(tmp_path):
    for name in damaged_files(tmp_path):
        with pytest.raises(UserError, match=name) as caught:
            read_all(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_video_cut_off_after_its_index_is_called_truncated(tmp_path):
    path = tmp_path / "cut.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="truncated, it promises 20 frames and holds"):
        open_clip(str(path))


def test_damaged_picture_in_a_folder_is_named(tmp_path):
    for index in range(3):
        Image.fromarray(numbered(3)[index]).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        read_all(tmp_path)
