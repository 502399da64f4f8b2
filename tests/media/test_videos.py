import av
import numpy as np
import pytest

from fourreal.media.videos import write_video


def test_written_video_is_h264_in_yuv420p_and_leaves_no_partial_file(tmp_path):
    video = tmp_path / "clip.mp4"
    write_video(video, np.zeros((12, 32, 48, 3), np.uint8), fps=8)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
    assert [file.name for file in video.parent.iterdir()] == ["clip.mp4"]


def test_writing_a_video_with_odd_sides_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="even sides, not 5x4"):
        write_video(tmp_path / "odd.mp4", np.zeros((2, 4, 5, 3), np.uint8), fps=8)
    assert not list(tmp_path.iterdir())
