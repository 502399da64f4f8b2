"""Pictures and videos are read as they are to be shown, against analytic pictures and the recommendations' formulas."""

import shutil
import struct
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
import tifffile
from made_videos import flat, rgb_of, write
from PIL import Image

from fourreal.errors import UserError
from fourreal.media.clips import frame_sizes, open_clip, read_frames
from fourreal.media.pictures import cut_away
from fourreal.media.videos import TURNS, write_video

RED = (200, 30, 60)  # 601 and 709 disagree on it by 26 levels


def shown(path, size=None):
    """The first frame in its own size."""
    clip = open_clip(str(path))
    (own,) = frame_sizes(clip, [0])
    return read_frames(clip, [0], size or own, "center")[0]


def disc(height, width, aspect):
    """A disc that is round where pixels are `aspect` times as wide as high, of half the height in diameter."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = ((x - width / 2) * aspect) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
    return np.repeat(255 * inside[None, ..., None].astype(np.uint8), 3, -1)


@pytest.mark.parametrize(
    ("name", "codec", "stored", "aspect", "width"),
    [
        ("pal.mp4", "libx264", "yuv444p", Fraction(64, 45), 256),  # 180 wide: a quarter of 720 x 576 shown as 16:9
        ("pal.mkv", "libx264", "yuv444p", Fraction(64, 45), 256),
        ("pal.mpg", "mpeg2video", "yuv420p", Fraction(64, 45), 256),
        ("narrow.mp4", "libx264", "yuv444p", Fraction(8, 9), 160),
    ],
)
def test_a_disc_filmed_in_wide_pixels_is_round(tmp_path, name, codec, stored, aspect, width):
    picture = disc(144, 180, aspect)
    write(tmp_path / name, np.repeat(picture, 12, 0), codec=codec, stored=stored, aspect=aspect)
    frame = shown(tmp_path / name)
    assert frame.shape == (144, width, 3)
    inside = frame[..., 0] > 127
    across, down = inside.any(0).sum(), inside.any(1).sum()
    assert abs(across - 72) <= 2 and abs(down - 72) <= 2  # one pixel of blur at each end


def test_square_pixels_stay_as_they_are(tmp_path):
    path = write(tmp_path / "a.mp4", disc(144, 180, 1), aspect=Fraction(1))
    assert np.abs(shown(path).astype(int) - disc(144, 180, 1)[0]).max() <= 2


@pytest.mark.parametrize("turn", list(TURNS))
def test_every_display_matrix_moves_each_pixel_where_it_says(tmp_path, turn):
    """Pixel (x, y) goes to (a x + c y, b x + d y), shifted so that all are at least 0."""
    a, b, c, d = turn
    stored = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 1), np.uint8).repeat(3, -1)
    path = write(tmp_path / "a.mp4", stored, matrix=(a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30))
    y, x = np.mgrid[:16, :32]
    across, down = a * x + c * y, b * x + d * y
    expected = np.zeros((16, 32) if a else (32, 16), np.uint8)
    expected[down - down.min(), across - across.min()] = stored[0, ..., 0]
    frame = shown(path)
    assert frame.shape[:2] == expected.shape
    assert np.abs(frame[..., 0].astype(int) - expected).max() <= 2  # limited range in 8 bits


def test_an_oblique_display_matrix_is_refused(tmp_path):
    path = write(
        tmp_path / "a.mp4",
        np.zeros((1, 16, 16, 3), np.uint8),
        matrix=(46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30),
    )
    with pytest.raises(UserError, match="no turn by 90 degrees"):
        open_clip(path)


def test_wide_pixels_of_a_turned_video_are_widened_before_the_turn(tmp_path):
    matrix = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path = write(tmp_path / "a.mp4", disc(36, 48, 2), aspect=Fraction(2), matrix=matrix)
    frame = shown(path)
    assert frame.shape == (96, 36, 3)
    inside = frame[..., 0] > 127
    assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 2


@pytest.mark.parametrize("aspect", [Fraction(255, 2), Fraction(1, 100)])
def test_absurd_pixels_are_refused(tmp_path, aspect):
    path = write(tmp_path / "a.mp4", np.zeros((1, 128, 128, 3), np.uint8), aspect=aspect)
    with pytest.raises(UserError, match=r"times as wide as high; expected square.*ffmpeg -i .* -vf setsar=1"):
        open_clip(path)


@pytest.mark.parametrize(
    ("size", "tags", "matrix", "full"),
    [
        ((720, 1280), {}, "709", False),  # untagged: HD
        ((1280, 720), {}, "709", False),  # and upright
        ((578, 720), {}, "709", False),
        ((576, 720), {}, "601", False),  # untagged: SD
        ((240, 320), {}, "601", False),
        ((720, 1280), {"colorspace": 6}, "601", False),
        ((720, 1280), {"colorspace": 5, "color_range": 2}, "601", True),
        ((240, 320), {"colorspace": 1, "color_range": 1}, "709", False),
        ((240, 320), {"colorspace": 1, "color_range": 2}, "709", True),
    ],
)
def test_colours_follow_the_tagged_matrix_and_range_or_the_rule_by_size(tmp_path, size, tags, matrix, full):
    path = write(
        tmp_path / "a.mp4", flat(RED, matrix, size, full), "yuv444p", options={"qp": "0", "preset": "ultrafast"}, **tags
    )
    assert np.abs(shown(path, (8, 8)).astype(int) - RED).max() <= 2  # rounding of Y, Cb and Cr


@pytest.mark.parametrize(("transfer", "name"), [(18, "HLG"), (16, "PQ")])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_hdr_video_is_refused_with_the_line_that_converts_it(tmp_path, transfer, name, suffix):
    path = write(
        tmp_path / f"a b.{suffix}",
        np.zeros((2, 16, 16, 3), np.uint8),
        color_trc=transfer,
        colorspace=9,
        color_primaries=9,
    )
    with pytest.raises(
        UserError, match=rf"HDR video \({name}\).*ffmpeg -i '.*a b\.{suffix}' -vf zscale=t=linear.*tonemap"
    ):
        open_clip(path)


def test_a_matrix_that_cannot_be_converted_is_refused(tmp_path):
    path = write(tmp_path / "a.mkv", np.zeros((2, 16, 16, 3), np.uint8), colorspace=8)  # YCgCo
    with pytest.raises(UserError, match=r"colour matrix 8 .*zscale=m=bt709"):
        open_clip(path)


@pytest.mark.parametrize(
    ("name", "codec", "stored", "tolerance"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", 6),  # lossy
        ("a.mov", "prores_ks", "yuva444p10le", 4),
        ("b.mov", "qtrle", "argb", 1),
        ("c.mov", "png", "rgba", 1),
    ],
)
def test_transparent_parts_of_a_video_are_laid_on_white(tmp_path, name, codec, stored, tolerance):
    frames = np.zeros((3, 32, 64, 4), np.uint8)
    frames[..., :2], frames[:, :, 32:, 3] = (255, 102), 102  # left: clear; right: 40 %
    write(tmp_path / name, frames, "rgba", codec=codec, stored=stored)
    frame = shown(tmp_path / name).astype(int)
    assert np.abs(frame[4:-4, 4:28] - 255).max() <= tolerance
    assert np.abs(frame[4:-4, 36:-4] - (255, 0.4 * 102 + 0.6 * 255, 0.6 * 255)).max() <= tolerance


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
@pytest.mark.parametrize(
    "options",
    [
        *({"matrix": (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)} for a, b, c, d in TURNS),
        {"aspect": Fraction(3, 2)},
        {"aspect": Fraction(3, 4)},
        {"colorspace": 1, "color_range": 1},
        {"colorspace": 6, "color_range": 1},
    ],
)
def test_frames_are_those_of_the_program_ffmpeg(tmp_path, options):
    """Which turns, mirrors and converts by itself; square pixels are asked of its scaler, whose kernel is another one."""
    y, x = np.mgrid[:32, :64]
    smooth = np.stack([4 * x, 8 * y, 2 * x + 3 * y], -1).astype(np.uint8)[None]
    path = write(tmp_path / "a.mp4", smooth, **options)
    frame = shown(path)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        path,
        "-vf",
        "scale=iw*sar:ih",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    theirs = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8).reshape(
        frame.shape
    )
    assert np.abs(frame[2:-2, 2:-2].astype(int) - theirs[2:-2, 2:-2]).max() <= 3


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.uint16])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": False}, {"byteorder": ">"}])
def test_deep_tiffs_are_scaled(tmp_path, channels, kind, options):
    ramp = np.broadcast_to(np.linspace(0, 1, 48).reshape(1, 48, *(1 for _ in channels)), (32, 48, *channels))
    tifffile.imwrite(tmp_path / "a.tif", (ramp * (65535 if kind == np.uint16 else 1)).astype(kind), **options)
    expected = np.broadcast_to(255 * np.linspace(0, 1, 48)[:, None], (32, 48, 3))
    assert np.abs(shown(tmp_path / "a.tif") - expected).max() <= 1  # Pillow drops the low byte of 16-bit colours


@pytest.mark.parametrize("value", [3.2, -1, np.nan])
def test_floats_that_are_not_0_to_1_are_refused(tmp_path, value):
    tifffile.imwrite(tmp_path / "a.tif", np.full((32, 48), value, np.float32))
    with pytest.raises(UserError, match=r"a\.tif.*floats must be 0 \(black\) to 1"):
        shown(tmp_path / "a.tif")


def test_a_picture_on_its_side_is_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.new("RGB", (48, 32)).save(tmp_path / "a.jpg", exif=exif)
    assert frame_sizes(open_clip(str(tmp_path / "a.jpg")), [0]) == {(48, 32)}


@pytest.mark.parametrize("colour", [RED, (10, 220, 30), (40, 60, 250)])
def test_written_video_is_bt709_in_limited_range_and_says_so(tmp_path, colour):
    write_video(tmp_path / "a.mp4", np.full((3, 64, 64, 3), colour, np.uint8), 8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[8, 8] for plane in frame.planes]
    assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
    assert np.abs(rgb_of(np.array(planes), "709") - colour).max() <= 3  # 8-bit yuv, CRF 18


@pytest.mark.parametrize(
    ("old", "new", "crop", "words"),
    [
        ((1080, 1920), (64, 64), "center", "44% of the width"),  # 1 - 1080/1920
        ((1920, 1080), (64, 64), "center", "44% of the height"),
        ((100, 110), (64, 64), "center", ""),  # a eleventh
        ((100, 112), (64, 64), "center", "11% of the width"),
        ((1080, 1920), (64, 64), "pad", ""),
        ((64, 64), (90, 160), "center", "44% of the height"),
    ],
)
def test_what_a_crop_takes_is_said_above_a_tenth_of_a_side(old, new, crop, words):
    assert cut_away(old, new, crop) == words


def display_p3() -> bytes:
    """The ICC profile of Display P3 (ICC.1, a matrix and sRGB's curve): its colours in XYZ, adapted to D50."""
    colours = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
        b"wtpt": (0.96420, 1.0, 0.82491),
    }

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    tags = {name: b"XYZ \0\0\0\0" + fixed(*values) for name, values in colours.items()}
    curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content
    kinds = b"\4\x30\0\0mntrRGB XYZ "
    rest = bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.82491) + bytes(48)
    return struct.pack(">I4s", start + len(data), b"lcms") + kinds + rest + table + data


# from linear light of Display P3 to that of sRGB, by their chromaticities; both have white D65 and sRGB's curve
SRGB_FROM_P3 = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("colour", [(150, 100, 80), (60, 140, 90), (200, 200, 200)])
def test_colours_of_a_phone_s_picture_in_display_p3_become_those_of_srgb(tmp_path, colour, suffix):
    path = tmp_path / f"p3{suffix}"
    Image.new("RGB", (16, 16), colour).save(path, icc_profile=display_p3(), quality=100)
    c = np.array(colour) / 255
    light = SRGB_FROM_P3 @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)
    found = read_frames(open_clip(str(path)), [0], (16, 16), "center")[0, 8, 8]
    np.testing.assert_allclose(found, expected.clip(0), atol=2)  # two roundings, and those of JPEG and WebP


def test_a_profile_changes_neither_transparency_nor_is_a_damaged_one_an_error(tmp_path):
    picture = Image.new("RGBA", (8, 8), (200, 30, 30, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 4, 8))
    picture.save(tmp_path / "clear.png", icc_profile=display_p3())
    left, right = read_frames(open_clip(str(tmp_path / "clear.png")), [0], (8, 8), "center")[0, 4, [1, 6]]
    assert left.tolist() == [255, 255, 255] and right[0] > 210  # redder than sRGB's 200
    picture.convert("RGB").save(tmp_path / "damaged.png", icc_profile=display_p3()[:90])
    assert read_frames(open_clip(str(tmp_path / "damaged.png")), [0], (8, 8), "center")[0, 4, 6].tolist() == [
        200,
        30,
        30,
    ]
