"""Pictures under their own cameras: points drawn where a camera sees them are found where its K and c2w say, in the grid."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from fourreal.errors import UserError
from fourreal.geometry import pinhole
from fourreal.media.colmap import quaternion
from fourreal.media.transforms import read_cameras
from fourreal.media.videos import write_video
from fourreal.sampling.inputs import parse_placement, place_views, read_grid, read_placements

WIDE = (240, 320)  # height and width of the pictures
SHAPE = (4, 3, 96, 96)
POINTS = np.array([[0, 0, 0], [0.35, 0.1, 0.2], [-0.3, 0.2, -0.25], [0.1, -0.35, 0.3]])
K = np.array([[310.0, 0, 166], [0, 300, 117], [0, 0, 1]])
LEVEL = 40
FRAME = {"fl_x": 310, "fl_y": 300, "cx": 166, "cy": 117, "w": 320, "h": 240}
BENT = {"k1": -0.25, "k2": 0.12, "p1": 0.004, "p2": -0.003, "k3": 0.02}
PINHOLE = {}
FISHEYE = {"camera_model": "OPENCV_FISHEYE", "k1": 0.05, "k2": -0.02, "k3": 0.01, "k4": -0.003}
# points move by what 8-bit levels, the video's codec and cubic resampling leave: below 0.2 px; the issue asks for half a pixel
CLOSE = 0.5


def rig(views: int, total: float = 70) -> np.ndarray:
    """Cameras around the points in float64, OpenCV."""
    return pinhole.orbit_arc(np.zeros(3), 2.2, np.linspace(0, total, views), np.linspace(10, 25, views)).astype(float)


def seen(c2w: np.ndarray, lens: dict, size=WIDE) -> np.ndarray:
    """Where a lens shows the points, in pixels of a picture of `size`: the formulas of OpenCV's manual, written out."""
    camera = (POINTS - c2w[:3, 3]) @ c2w[:3, :3]
    x, y = (camera[:, :2] / camera[:, 2:]).T
    r2 = x * x + y * y
    k1, k2, k3, k4, k5, k6, p1, p2 = (lens.get(key, 0) for key in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2"))
    if "FISHEYE" in lens.get("camera_model", ""):
        angle = np.arctan(np.sqrt(r2))
        bent = (
            angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8) / np.maximum(np.sqrt(r2), 1e-9)
        )
        x, y = x * bent, y * bent
    else:
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )
    pixels = np.stack([K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]], 1)
    return pixels * [size[1] / WIDE[1], size[0] / WIDE[0]]


def drawn(c2w: np.ndarray, lens: dict, size=WIDE) -> np.ndarray:
    """A dark picture with a bright round spot at every point."""
    row, column = np.mgrid[: size[0], : size[1]] + 0.5
    light = sum(np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * 2.5**2)) for x, y in seen(c2w, lens, size))
    return np.repeat((215 * light.clip(0, 1) + LEVEL).astype(np.uint8)[..., None], 3, 2)


def misses(result, views=None) -> np.ndarray:
    """How far each spot of each given cell is from where K and c2w say, in pixels of the grid."""
    found = []
    for v, t in np.argwhere(result.given):
        if views is not None and v not in views:
            continue
        light = (result.frames[v, t, ..., 1].astype(float) - LEVEL - 20).clip(0)
        row, column = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
        expected, depth = pinhole.project(POINTS, result.K[v].astype(float), result.c2w[v])
        assert (depth > 0).all()
        for x, y in expected:
            near = light * ((column - x) ** 2 + (row - y) ** 2 < 3.5**2)
            found.append(math.hypot((near * (column - x)).sum(), (near * (row - y)).sum()) / max(near.sum(), 1e-9))
            if near.max() < 30:
                found[-1] = math.inf
    return np.array(found)


def matrix(c2w: np.ndarray) -> list:
    return pinhole.opengl_from_opencv(c2w).tolist()


def write(path, frames, **top):
    path.write_text(json.dumps({**top, "frames": frames}))
    return read_cameras(str(path))


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def read(texts, cameras, shape=SHAPE, **options):
    return read_placements([parse_placement(text) for text in texts], shape, cameras=cameras, **options)


NAMES = [f"cam{number}" for number in (1, 2, 3, 5, 8, 10, 11, 20)]  # by their characters 1, 10, 11, 2, 20, ...
SHUFFLED = [3, 0, 7, 5, 1, 6, 2, 4]


def nerfstudio_labels(folder, poses, lenses):
    """One frame a camera and time, in no order, by labels."""
    frames = [
        {"camera_label": NAMES[v], "transform_matrix": matrix(poses[v]), "time": t, **FRAME, **lenses[v]}
        for t in (0, 1)
        for v in SHUFFLED
    ]
    return write(folder / "transforms.json", frames)


def nerfstudio_folders(folder, poses, lenses):
    """Pictures in folders of the videos' names, without labels, far from the origin as in UTM."""
    far = np.array([[0, 0, 0, 4.5e5], [0, 0, 0, 5.2e6], [0, 0, 0, 120], [0, 0, 0, 0]])
    frames = [
        {"file_path": f"images/{NAMES[v]}/{t:04d}.png", "time": t / 2, "transform_matrix": matrix(poses[v] + far)}
        | FRAME
        | lenses[v]
        for v in SHUFFLED
        for t in range(3)
    ]
    return write(folder / "transforms.json", frames)


def colmap_text(folder, poses, lenses):
    """images.txt and cameras.txt, world to camera, a camera each, named by the videos' first frames."""
    (folder / "sparse").mkdir()
    cameras, images = ["# cameras"], ["# images"]
    for number, v in enumerate(SHUFFLED, 7):
        lens, fisheye = lenses[v], "camera_model" in lenses[v]
        order = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
        values = " ".join(str(lens.get(key, 0)) for key in order)
        cameras.append(f"{number} {'OPENCV_FISHEYE' if fisheye else 'FULL_OPENCV'} 320 240 310 300 166 117 {values}")
        w2c = np.linalg.inv(poses[v])
        pose = " ".join(map(str, (*quaternion(w2c[:3, :3]), *w2c[:3, 3])))
        images += [f"{number} {pose} {number} {NAMES[v]}/0001.jpg", "1.5 2.5 -1" if v % 2 else ""]
    (folder / "sparse/cameras.txt").write_text("\n".join(cameras))
    (folder / "sparse/images.txt").write_text("\n".join(images))
    return read_cameras(str(folder / "sparse"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos of still spots: other lenses, lengths and rates."""
    folder = tmp_path_factory.mktemp("rig")
    poses, lenses = rig(8), [BENT, PINHOLE, FISHEYE, {"k1": 0.15}] * 2
    for v, name in enumerate(NAMES):
        picture = drawn(poses[v], lenses[v])
        write_video(folder / f"{name}.mp4", np.stack([picture] * (6 + v % 3)), fps=8 + 4 * (v % 2))
    return folder, poses, lenses


@pytest.mark.parametrize("form", [nerfstudio_labels, nerfstudio_folders, colmap_text])
@pytest.mark.parametrize("crop", ["center", "pad"])
def test_eight_cameras_with_lenses_see_every_point_where_they_say(videos, tmp_path, form, crop):
    folder, poses, lenses = videos
    placements, _ = place_views(str(folder), 8)
    result = read_placements(placements, (8, *SHAPE[1:]), crop=crop, cameras=form(tmp_path, poses, lenses))
    if form is nerfstudio_folders:  # the points are there too
        result.c2w[:, :3, 3] -= [4.5e5, 5.2e6, 120]
    assert misses(result).max() < CLOSE
    np.testing.assert_allclose(result.c2w, poses, atol=1e-6)
    assert "by the pictures' names; lens distortion taken out" in result.notes[-1]
    assert "aligned by time" in result.notes[0]


def test_blender_s_angle_is_of_the_real_pictures(tmp_path):
    """Pictures without w, h and lens, 320 x 240, cx and cy in the middle; the grid is 96 x 96."""
    global K
    kept, K = K, np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
    try:
        poses = rig(4)
        for v in range(4):
            save(tmp_path / f"train/r_{v}.png", drawn(poses[v], PINHOLE))
        frames = [
            {"file_path": f"./train/r_{v}", "transform_matrix": matrix(poses[v]), "time": v} for v in (2, 0, 3, 1)
        ]
        cameras = write(tmp_path / "transforms_train.json", frames, camera_angle_x=2 * math.atan(160 / 300))
        result = read([f"{tmp_path}/train@t=0"], cameras)
        assert misses(result).max() < CLOSE
    finally:
        K = kept


def orbit(folder, views=6):
    poses = rig(views, 60)
    for v in range(views):
        save(folder / f"pics/p{v + 7}.png", drawn(poses[v], PINHOLE))  # p7, ..., p12: natural order
    return poses, [
        {"file_path": f"p{v + 7}.jpg", "transform_matrix": matrix(poses[v]), **FRAME} for v in (5, 0, 3, 1, 2, 4)
    ]


@pytest.mark.parametrize(("frames", "taken"), [(None, (0, 2, 3, 5)), ("1:5", (1, 2, 3, 4)), ("2:", (2, 3, 4, 5))])
def test_pictures_of_an_orbit_have_the_cameras_of_their_names_whichever_are_taken(tmp_path, frames, taken):
    poses, listed = orbit(tmp_path)
    result = read([f"{tmp_path}/pics@t=0"], write(tmp_path / "t.json", listed), frames=frames)
    np.testing.assert_allclose(result.c2w, poses[list(taken)], atol=1e-9)
    assert misses(result).max() < CLOSE


@pytest.mark.parametrize("frames", [None, "1:5"])
def test_frames_of_an_orbit_video_have_cameras_by_index(tmp_path, frames):
    _, listed = orbit(tmp_path)
    pictures = [np.asarray(Image.open(tmp_path / f"pics/p{v + 7}.png")) for v in range(6)]
    write_video(tmp_path / "around.mp4", np.stack(pictures), fps=8)
    result = read([f"{tmp_path}/around.mp4@t=0"], write(tmp_path / "t.json", listed), frames=frames)
    assert misses(result).max() < CLOSE and result.notes[-1].endswith("by the frames' index or time")


def test_frames_of_an_orbit_video_have_cameras_by_time_where_not_all_have_one(tmp_path):
    poses, _ = orbit(tmp_path)
    pictures = [np.asarray(Image.open(tmp_path / f"pics/p{v + 7}.png")) for v in range(6)]
    write_video(tmp_path / "around.mp4", np.stack(pictures), fps=8)
    timed = [{"time": v / 5, "transform_matrix": matrix(poses[v]), **FRAME} for v in (5, 0, 3, 2, 4)]
    cameras = write(tmp_path / "t.json", timed)
    assert misses(read([f"{tmp_path}/around.mp4@t=0"], cameras)).max() < CLOSE  # 0, 2, 3, 5
    with pytest.raises(UserError, match=r"no camera for around.mp4 \(frame 1 of 6\) at view 0"):
        read([f"{tmp_path}/around.mp4@t=0"], cameras, frames="1:5")


def test_a_label_may_be_the_name_of_the_folder_that_a_video_is_in(tmp_path):
    poses = rig(4)
    listed = [{"camera_label": f"cam{v}", "transform_matrix": matrix(poses[v]), **FRAME} for v in (3, 1, 0, 2)]
    texts = []
    for v in (2, 0, 3):
        save(tmp_path / f"cam{v}/p.png", drawn(poses[v], PINHOLE))
        texts.append(f"{tmp_path}/cam{v}/p.png@v={len(texts)},t=0")
    result = read(texts, write(tmp_path / "t.json", listed))
    np.testing.assert_allclose(result.c2w, poses[[2, 0, 3, 1]], atol=1e-9)


def test_views_that_are_sampled_get_the_cameras_that_are_left(tmp_path):
    poses, listed = orbit(tmp_path)
    listed = [frame for frame in listed if frame["file_path"] not in ("p11.jpg", "p12.jpg")]
    result = read([f"{tmp_path}/pics/p9.png@v=0,t=0"], write(tmp_path / "t.json", listed))
    np.testing.assert_allclose(result.c2w, poses[[2, 0, 1, 3]], atol=1e-9)
    assert misses(result).max() < CLOSE


def test_smaller_copies_of_the_pictures_scale_their_cameras_and_say_so(tmp_path):
    poses, lens = rig(4), BENT
    for v in range(4):
        save(tmp_path / f"images_2/{v}.png", drawn(poses[v], lens, (120, 160)))
    listed = [{"file_path": f"images/{v}.png", "transform_matrix": matrix(poses[v]), **FRAME, **lens} for v in range(4)]
    result = read([f"{tmp_path}/images_2@t=0"], write(tmp_path / "t.json", listed))
    assert misses(result).max() < CLOSE
    assert "pictures of 160x120 for cameras of 320x240, which are scaled" in result.notes[-1]


def test_a_test_grid_s_views_have_cameras_by_the_index_they_are_stored_at(tmp_path):
    poses = rig(7, 60)
    frames = np.stack([np.stack([drawn(pose, PINHOLE)] * 3) for pose in poses])
    np.savez(tmp_path / "g.npz", frames=frames)
    listed = [{"transform_matrix": matrix(pose), **FRAME} for pose in poses]
    result = read_grid(str(tmp_path / "g.npz"), SHAPE, cameras=write(tmp_path / "t.json", listed))
    np.testing.assert_allclose(result.c2w, poses[[0, 2, 4, 6]], atol=1e-9)
    assert misses(result).max() < CLOSE


@pytest.mark.parametrize(
    ("keep", "pictures", "words"),
    [
        ((0, 1, 2, 4, 5), 6, r"no camera for pics/p10\.png at view 2"),
        ((0, 1, 2, 3, 4, 5), 4, r"no picture for the camera p11\.jpg"),
        ((0, 1, 2), 6, r"3 cameras; the grid needs 4"),
    ],
)
def test_a_picture_without_a_camera_and_a_camera_without_a_picture_are_named(tmp_path, keep, pictures, words):
    _, listed = orbit(tmp_path)
    listed = [frame for frame in listed if int(frame["file_path"][1:-4]) - 7 in keep]
    for v in range(pictures, 6):
        (tmp_path / f"pics/p{v + 7}.png").unlink()
    with pytest.raises(UserError, match=words):
        read([f"{tmp_path}/pics@t=0"], write(tmp_path / "t.json", listed))


def test_what_cannot_be_told_is_asked(tmp_path):
    poses, listed = orbit(tmp_path)
    save(tmp_path / "x.png", drawn(poses[0], PINHOLE))
    nameless = [{"transform_matrix": matrix(pose), **FRAME} for pose in poses]
    with pytest.raises(
        UserError, match=r"6 cameras for 4 views, and no name or number says which of them saw .*x\.png"
    ):
        read([f"{tmp_path}/x.png@v=2,t=0"], write(tmp_path / "t.json", nameless))
    twice = [{**frame, "file_path": f"{n}/x.png"} for n, frame in enumerate(listed)]
    with pytest.raises(UserError, match=r"x\.png fits several cameras \(0/x\.png, 1/x\.png"):
        read([f"{tmp_path}/x.png@v=2,t=0"], write(tmp_path / "t.json", twice))
    moving = [{**frame, "camera_label": "phone"} for frame in listed]
    write_video(tmp_path / "phone.mp4", np.stack([drawn(poses[0], PINHOLE)] * 3), fps=8)
    with pytest.raises(
        UserError, match=r"phone.mp4 .* fits several cameras .* a view has one camera, which stands still"
    ):
        read([f"{tmp_path}/phone.mp4@v=0"], write(tmp_path / "t.json", moving))


def test_pictures_of_another_aspect_than_their_cameras_are_refused(tmp_path):
    _, listed = orbit(tmp_path)
    for v in range(6):
        path = tmp_path / f"pics/p{v + 7}.png"
        Image.open(path).rotate(90, expand=True).save(path)
    with pytest.raises(UserError, match=r"p7\.jpg is of pictures of 320x240, and this one has 240x320"):
        read([f"{tmp_path}/pics@t=0"], write(tmp_path / "t.json", listed))


def test_a_note_says_which_convention_fits_and_when_places_are_noise(tmp_path):
    poses, listed = orbit(tmp_path, 6)
    opencv = [{**frame, "transform_matrix": poses[int(frame["file_path"][1:-4]) - 7].tolist()} for frame in listed]
    (note,) = read([f"{tmp_path}/pics@t=0"], write(tmp_path / "t.json", opencv)).notes[-1:]
    assert "as camera to world in OpenCV's axes they do" in note and "--poses c2w --axes opencv" in note
    rng = np.random.default_rng(0)
    tripod = []
    for number, frame in enumerate(sorted(listed, key=lambda frame: int(frame["file_path"][1:-4]))):
        eye, angle = 1e-3 * rng.normal(size=3), np.radians(15 * number)
        c2w = pinhole.look_at(eye, eye + np.array([math.cos(angle), math.sin(angle), 0]))
        tripod.append({**frame, "transform_matrix": matrix(c2w.astype(float))})
    (note,) = read([f"{tmp_path}/pics@t=0"], write(tmp_path / "t.json", tripod)).notes[-1:]
    assert "rotation only" in note
