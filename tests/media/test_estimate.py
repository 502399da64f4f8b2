"""`cameras estimate` against the cameras of a scene that is ray-traced here: two walls, a floor and a board, all textured."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from fourreal import cli
from fourreal.media.transforms import read_cameras
from fourreal.media.videos import write_video

pytest.importorskip("pycolmap")

SIZE, FOCAL = (240, 360), 300.0
PLANES = [  # corner and both sides, which are at right angles
    ((-3, -1.5, 2), (6, 0, 0), (0, 3, 0)),
    ((-3, 1, -2.5), (6, 0, 0), (0, 0, 4.5)),
    ((-0.6, -0.4, 0.2), (0.9, 0, 0.3), (0, 1.4, 0)),
    ((0.3, -0.6, -0.3), (0.5, 0, -0.4), (0, 1.6, 0)),
]


def texture(rng) -> np.ndarray:
    return sum(cv2.resize(rng.random((n, n, 3)), (256, 256), interpolation=cv2.INTER_LINEAR) for n in (8, 32, 96)) / 3


def looking_at_the_middle(angle: float) -> np.ndarray:
    """c2w, OpenCV, on an arc of radius 4."""
    place = np.array([4 * np.sin(angle), -0.8, -4 * np.cos(angle)])
    forward = -place / np.linalg.norm(place)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, place], axis=1)
    return c2w


def picture(c2w: np.ndarray, textures: list[np.ndarray]) -> np.ndarray:
    """What a pinhole there sees, uint8, from four rays a pixel."""
    height, width = SIZE
    x, y = np.meshgrid((np.arange(2 * width) + 0.5) / 2 - width / 2, (np.arange(2 * height) + 0.5) / 2 - height / 2)
    rays = np.stack([x, y, np.full_like(x, FOCAL)], axis=-1) @ c2w[:3, :3].T
    nearest, seen = np.full(x.shape, np.inf), np.full((*x.shape, 3), 0.4)
    for (corner, across, down), colours in zip(np.array(PLANES, float), textures, strict=True):
        normal = np.cross(across, down)
        depth = ((corner - c2w[:3, 3]) @ normal) / (rays @ normal)
        spot = c2w[:3, 3] + depth[..., None] * rays - corner
        u, v = spot @ across / (across @ across), spot @ down / (down @ down)
        hit = (depth > 0) & (depth < nearest) & (np.abs(u - 0.5) < 0.5) & (np.abs(v - 0.5) < 0.5)
        found = cv2.remap(colours, (u * 255).astype(np.float32), (v * 255).astype(np.float32), cv2.INTER_LINEAR)
        seen[hit], nearest[hit] = found[hit], depth[hit]
    return (seen.reshape(height, 2, width, 2, 3).mean((1, 3)) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def arc() -> tuple[np.ndarray, np.ndarray]:
    """Eight cameras over 40 degrees, c2w, and their pictures."""
    rng = np.random.default_rng(0)
    textures = [texture(rng) for _ in PLANES]
    cameras = np.stack([looking_at_the_middle(angle) for angle in np.radians(np.linspace(-20, 20, 8))])
    return cameras, np.stack([picture(c2w, textures) for c2w in cameras])


def check(path, expected: np.ndarray) -> None:
    """Poses up to a similarity: relative to the first camera, and to the distance of the last one from it."""
    found = np.stack([frame.c2w for frame in read_cameras(str(path)).frames])
    found, expected = (np.linalg.inv(c2w[0]) @ c2w for c2w in (found, expected))
    turned = found[:, :3, :3].transpose(0, 2, 1) @ expected[:, :3, :3]
    degrees = np.degrees(np.arccos(((np.trace(turned, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))
    assert degrees.max() < 0.1  # a third of a pixel at this focal length is 0.06 degrees
    places = [c2w[:, :3, 3] / np.linalg.norm(c2w[-1, :3, 3]) for c2w in (found, expected)]
    np.testing.assert_allclose(places[0], places[1], atol=0.01)


@pytest.mark.slow
def test_pictures_and_a_video_of_an_arc_have_the_cameras_they_were_traced_with(arc, tmp_path, capsys):
    cameras, pictures = arc
    (tmp_path / "walk").mkdir()
    for number, one in enumerate(pictures):
        Image.fromarray(one).save(tmp_path / "walk" / f"p{number}.png")
    Image.new("RGB", SIZE[::-1], "grey").save(tmp_path / "walk" / "p8.png")  # nothing to be found by
    cli.main(["cameras", "estimate", str(tmp_path / "walk"), str(tmp_path / "walk.json")])
    check(tmp_path / "walk.json", cameras)
    file = read_cameras(str(tmp_path / "walk.json"))
    assert [frame.path for frame in file.frames] == [f"walk/p{number}.png" for number in range(8)]
    assert abs(file.frames[0].focal[0] / FOCAL - 1) < 0.01
    assert "without a camera: p8.png" in capsys.readouterr().out

    write_video(tmp_path / "walk.mp4", pictures, 8)
    cli.main(["cameras", "estimate", str(tmp_path / "walk.mp4"), str(tmp_path / "video.json"), "--lens", "pinhole"])
    check(tmp_path / "video.json", cameras)
    times = [frame["time"] for frame in json.loads((tmp_path / "video.json").read_text())["frames"]]
    np.testing.assert_allclose(times, np.arange(8) / 7)


def test_pictures_without_anything_to_find_are_refused_in_one_line(tmp_path, capsys):
    for number in range(3):
        Image.new("RGB", (96, 64), "grey").save(tmp_path / f"{number}.png")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["cameras", "estimate", str(tmp_path), str(tmp_path.with_suffix(".json"))])
    assert stopped.value.code == 2
    assert "COLMAP finds no cameras from its 3 pictures" in capsys.readouterr().err
    assert not tmp_path.with_suffix(".json").exists()
