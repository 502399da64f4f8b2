"""What the renderer draws, against projections, planes and still meshes worked out independently."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("panda3d")

from fourreal.data.render import drawing
from fourreal.data.render import renderer as render
from fourreal.data.render.procedural import box, sphere
from fourreal.data.render.scenes import sample_scene
from fourreal.geometry import pinhole as cameras

SIZE = 64
LIGHT = np.array([0.0, 0.0, 1.0], np.float32)


@pytest.fixture(scope="module")
def grid():
    assets = render.bundled_assets()
    return render.render_scene(sample_scene(0, "train", 3, assets), 3, 4, SIZE, assets)


def white_mesh(shape, scale, place) -> drawing.Mesh:
    positions = (shape.vertices * scale + place).astype(np.float32)[None]
    texture = np.full((8, 8, 3), 255, np.uint8)
    triangles, uv = shape.triangles.astype(np.int32), shape.uv.astype(np.float32)
    return drawing.Mesh(positions, np.zeros_like(positions), triangles, uv, texture)


def draw(mesh: drawing.Mesh, K: np.ndarray, c2w: np.ndarray, ambient: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rasteriser = render._rasteriser(SIZE * 4, SIZE * 4)
    with rasteriser.loaded([mesh]) as textures:
        rasteriser.place([mesh], textures, 0, LIGHT, ambient)
        return rasteriser.draw(K[0, 0] / SIZE, c2w, 0.5, 20.0)


def hull_centre(points: np.ndarray) -> np.ndarray:
    """The centre of area of the convex hull of [n, 2] points: gift wrapping, then the shoelace formula."""
    hull, here = [], points[points[:, 0].argmin()]
    while not hull or not np.array_equal(here, hull[0]):
        hull.append(here)
        ahead = points[0] if not np.array_equal(points[0], here) else points[1]
        for candidate in points:
            first, second = ahead - here, candidate - here
            if first[0] * second[1] - first[1] * second[0] < 0:
                ahead = candidate
        here = ahead
    x, y = np.array(hull).T
    area = x * np.roll(y, -1) - np.roll(x, -1) * y
    return np.array([((x + np.roll(x, -1)) * area).sum(), ((y + np.roll(y, -1)) * area).sum()]) / (3 * area.sum())


def test_small_cubes_appear_where_the_cameras_say():
    rng, errors = np.random.default_rng(0), []
    K = cameras.intrinsics(45, SIZE)
    for _ in range(60):
        c2w = cameras.orbit_arc(np.array([0, 0, 0.5]), 4.0, rng.uniform(0, 360, 1), rng.uniform(5, 50))[0]
        mesh = white_mesh(box(), 0.12, rng.uniform((-0.8, -0.8, 0.5), (0.8, 0.8, 1.1)))
        colour, _ = draw(mesh, K, c2w)
        row, column = np.nonzero(colour[..., 3] > 192)
        pixels, _ = cameras.project(mesh.positions[0].astype(float), K, c2w)
        errors.append((np.array([column.mean(), row.mean()]) + 0.5) / 4 - hull_centre(pixels))
    # vertices are snapped to samples a quarter of a pixel apart: no bias, and single cubes within half a sample
    assert np.abs(np.mean(errors, 0)).max() < 0.02
    assert np.abs(errors).max() < 0.125


def test_depth_of_a_ball_is_the_distance_of_its_front():
    K, c2w = cameras.intrinsics(45, SIZE), cameras.look_at([0, -4, 1], [0, 0, 1])
    colour, inverse_z = draw(white_mesh(sphere(), 1.0, (0, 0, 1)), K, c2w)
    rays = cameras.pixel_rays(K * np.array([[4], [4], [1]]), c2w, SIZE * 4, SIZE * 4)
    # |o + z r - centre| = radius, the nearer solution
    b, r2 = rays @ np.array([0, -4.0, 0]), (rays**2).sum(-1)
    root = b**2 - r2 * (16 - 0.25)
    exact = (-b - np.sqrt(np.maximum(root, 0))) / r2
    inside = (root > 0.05) & (colour[..., 3] > 192)
    assert inside.sum() > 1000
    # the ball is a polyhedron of 10 x 16 faces: its faces lie up to 1 - cos(pi / 16) ~ 2 % of the radius inside
    assert np.abs(1 / inverse_z[inside] - exact[inside]).max() < 0.05


def test_the_picture_is_not_mirrored_and_textures_stand_upright():
    positions = np.array([[[-1, 0, 0], [1, 0, 0], [1, 0, 2], [-1, 0, 2]]], np.float32)
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # glTF: v = 0 is the picture's first row
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:32, :32], texture[:32, 32:], texture[32:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    triangles = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    mesh = drawing.Mesh(positions, np.zeros_like(positions), triangles, uv, texture)
    colour, _ = draw(mesh, cameras.intrinsics(60, SIZE), cameras.look_at([0, -4, 1], [0, 0, 1]))
    rgb = colour[..., 2::-1].astype(int)
    at = {name: rgb[128 + y * 30, 128 + x * 30] for name, x, y in (("tl", -1, -1), ("tr", 1, -1), ("bl", -1, 1))}
    assert at["tl"].argmax() == 0 and at["tr"].argmax() == 1 and at["bl"].argmax() == 2
    assert min(value.max() for value in at.values()) > 240 and max(np.median(value) for value in at.values()) < 15


def test_a_key_frame_of_a_clip_looks_like_a_still_mesh_of_its_positions():
    from fourreal.data.render.gltf import AnimatedModel

    assets = render.bundled_assets()
    clip = assets.clips("train")[0]
    model = AnimatedModel(assets.folder / clip.file)
    sampler = model._animations[clip.clip]["samplers"][0]
    times = model._accessor(sampler["input"])[:, 0]
    index, targets = 3, model._parts[0][2]["targets"]
    # decoded here by hand: node scale and offset, base, and the one target that is on at this key
    weights = model._accessor(sampler["output"])[:, 0].reshape(len(times), -1)[index]
    assert np.count_nonzero(weights) == 1
    node = model._nodes[0]
    base = model._accessor(model._parts[0][2]["attributes"]["POSITION"])
    y_up = base + weights.max() * model._accessor(targets[int(weights.argmax())]["POSITION"])
    still = y_up * node["scale"][0] + np.array(node["translation"])
    still = np.stack([still[:, 0], -still[:, 2], still[:, 1]], -1)[None].astype(np.float32)
    primitive = model.primitives[0]
    K, middle = cameras.intrinsics(40, SIZE), still[0].mean(0)
    c2w = cameras.look_at(middle + np.array([0, -3, 1]) * np.ptp(still[0], 0).max(), middle)
    pictures = []
    for positions in (model.pose(clip.clip, times[[index]])[0], still):
        normals = drawing.smooth_normals(primitive, positions)
        mesh = drawing.Mesh(positions, normals, primitive.triangles, primitive.uv, primitive.texture)
        pictures.append(draw(mesh, K, c2w, ambient=0.5)[0])
    assert (pictures[0][..., 3] > 192).sum() > 500
    # positions agree to rounding, so at most a few samples on edges may differ
    assert (pictures[0] != pictures[1]).any(-1).mean() < 1e-3


def test_keys_shapes_and_types(grid):
    shapes = {key: (value.shape, str(value.dtype)) for key, value in grid.items()}
    assert shapes == {
        "frames": ((3, 4, 64, 64, 3), "uint8"),
        "depth": ((3, 4, 64, 64), "float16"),
        "subject": ((3, 4, 64, 64), "uint8"),
        "K": ((3, 3, 3), "float32"),
        "c2w": ((3, 4, 4), "float32"),
    }


def test_depth_of_one_view_lands_on_the_surface_that_the_others_see(grid):
    """Unprojects the subject of view 0 into view 1: where both see the same point the depths agree."""
    shares = []
    for t in range(4):
        points = cameras.unproject(grid["depth"][0, t].astype(float), grid["K"][0], grid["c2w"][0])
        points = points[grid["subject"][0, t] > 0]
        assert points[:, 2].min() > -0.05  # nothing stands below the ground
        pixels, depth = cameras.project(points, grid["K"][1], grid["c2w"][1])
        column, row = np.floor(pixels).astype(int).clip(0, SIZE - 1).T
        seen = grid["depth"][1, t][row, column].astype(float)
        on = grid["subject"][1, t][row, column] > 0
        shares.append((on.mean(), (np.abs(seen - depth)[on] < 0.05).mean()))
    landed, agreed = np.mean(shares, 0)
    assert landed > 0.9  # the subject is where view 1 has its subject
    assert agreed > 0.25  # the rest is hidden from view 1 by the subject itself: the views are 50 degrees apart


def test_ground_depth_is_on_the_plane(grid):
    points = cameras.unproject(grid["depth"][0, 0].astype(float), grid["K"][0], grid["c2w"][0])
    ground = (grid["subject"][0, 0] == 0) & (grid["depth"][0, 0] > 0) & (grid["depth"][0, 0] < 10)
    # depth is float16: relative error 2^-11
    assert ground.sum() > 300 and np.abs(points[ground][:, 2]).max() < 10 * 2**-11


def test_the_subject_is_whole_in_every_picture_and_moves(grid):
    subject = grid["subject"]
    assert subject.mean((2, 3)).min() > 0.05
    assert not subject[..., [0, -1], :].any() and not subject[..., [0, -1]].any()
    assert (np.ptp(grid["frames"].astype(int), axis=1).max(-1) > 12).mean() > 0.03


def test_a_shadow_darkens_the_ground_and_nothing_else_does():
    assets = render.bundled_assets()
    scene = sample_scene(0, "train", 3, assets)
    K = cameras.intrinsics(scene.arc.fov, SIZE)
    drawn = render.render_scene(scene, 1, 1, SIZE, assets)
    empty, _ = render.draw_backdrop(scene, K, drawn["c2w"][0], (SIZE, SIZE), assets)
    change = drawn["frames"][0, 0].astype(float) - empty
    beside = drawn["subject"][0, 0] == 0
    on_ground = drawn["depth"][0, 0] > 0
    shadow = beside & on_ground & (change.max(-1) < -10)
    assert shadow.sum() > 20
    sky = beside & ~on_ground
    covered = (
        np.abs(change[sky]).max(-1) > 2
    )  # sky beside the subject changes only where its edge covers part of a pixel
    assert covered.mean() < 0.1


def test_a_shadow_falls_where_the_light_leads():
    light = np.array([0.48, -0.36, 0.8], np.float32)
    mesh = white_mesh(box(), 0.1, (0.3, 0.2, 0.8))
    K, c2w = cameras.intrinsics(60, SIZE), cameras.look_at([0, -3, 3], [0, 0, 0])
    rasteriser = render._rasteriser(SIZE * 4, SIZE * 4)
    with rasteriser.loaded([mesh]) as textures:
        rasteriser.place([mesh], textures, 0, light, 0.5)
        colour, _ = rasteriser.draw(K[0, 0] / SIZE, c2w, 0.5, 20.0)
    row, column = np.nonzero((colour[..., 3] > 64) & (colour[..., 3] < 192))
    # the line from (0.3, 0.2, 0.8) away from the light meets z = 0 at (0.3, 0.2) - 0.8 / 0.8 * (0.48, -0.36)
    where, _ = cameras.project(np.array([[-0.18, 0.56, 0.0]]), K, c2w)
    assert len(row) > 30
    assert np.allclose((np.array([column.mean(), row.mean()]) + 0.5) / 4, where[0], atol=0.25)


def test_another_process_renders_the_same_bytes(grid):
    code = (
        "import hashlib\n"
        "from fourreal.data.render import renderer as render\nfrom fourreal.data.render.scenes import sample_scene\n"
        "g = render.render_scene(sample_scene(0, 'train', 3, render.bundled_assets()), 3, 4, 64)\n"
        "print(hashlib.sha256(b''.join(g[k].tobytes() for k in sorted(g))).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(grid[key].tobytes() for key in sorted(grid))).hexdigest()
    assert done.stdout.strip() == here
    assert done.stderr == ""  # the renderer keeps quiet


def test_the_middle_of_a_wide_or_tall_picture_is_the_square_one(grid):
    assets = render.bundled_assets()
    for height, width in ((SIZE, 2 * SIZE), (2 * SIZE, SIZE)):
        drawn = render.render_scene(sample_scene(0, "train", 3, assets), 3, 4, (height, width), assets)
        middle = np.s_[:, :, (height - SIZE) // 2 :, (width - SIZE) // 2 :]
        for name in ("frames", "depth", "subject"):
            assert drawn[name].shape[2:4] == (height, width)
            assert np.array_equal(drawn[name][middle][:, :, :SIZE, :SIZE], grid[name]), name
        shift = [(width - SIZE) / 2, (height - SIZE) / 2]
        assert np.array_equal(drawn["K"][:, :2, 2], grid["K"][:, :2, 2] + shift)


def test_drawing_again_settles_equal_depths_alike():
    """Touching primitives have samples of equal depth: which wins must not hang on where in memory they lie."""
    assets = render.bundled_assets()
    scene = next(
        scene
        for scene in (sample_scene(0, "train", index, assets) for index in range(100))
        if [subject.clip for subject in scene.subjects] == ["figure", "figure"]
    )
    drawn = {render.render_scene(scene, 4, 4, SIZE, assets)["frames"].tobytes() for _ in range(4)}
    assert len(drawn) == 1


def test_fewer_views_and_times_show_the_same_scene(grid):
    assets = render.bundled_assets()
    coarse = render.render_scene(sample_scene(0, "train", 3, assets), 2, 2, SIZE, assets)
    assert np.allclose(coarse["c2w"], grid["c2w"][[0, 2]], atol=1e-6)
    assert np.array_equal(coarse["frames"], grid["frames"][[0, 2]][:, [0, 2]])


@pytest.mark.parametrize(
    "shape, said", [((2, 2, 48), "power of two"), ((2, 2, 8), "power of two"), ((0, 2, 64), "choose 1 to")]
)
def test_impossible_grids_are_refused(shape, said):
    with pytest.raises(ValueError, match=said):
        render.check_shape(*shape)
