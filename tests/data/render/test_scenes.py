"""Scenes: drawn the same anywhere, from their own split, and framed whole."""

import dataclasses
import hashlib

import numpy as np
import pytest

from fourreal.data.render import drawing
from fourreal.data.render.assets import BUNDLED, Assets, split_of
from fourreal.data.render.procedural import KINDS, SHAPES, ProceduralModel
from fourreal.data.render.scenes import Arc, Scene, sample_scene
from fourreal.geometry import pinhole as cameras


@pytest.fixture(scope="module")
def assets():
    return Assets()


def test_a_scene_depends_on_seed_split_and_index_only(assets):
    scene = sample_scene(3, "train", 17, assets)
    assert scene == sample_scene(3, "train", 17, Assets())
    others = [
        sample_scene(4, "train", 17, assets),
        sample_scene(3, "test", 17, assets),
        sample_scene(3, "train", 18, assets),
    ]
    assert all(scene.arc != other.arc for other in others)


def test_scenes_of_a_seed_are_those_that_data_sets_were_rendered_from(assets):
    """The hash is of 100 scenes a split at commit 553dfd6; another asset pack changes it, nothing else may."""
    scenes = (
        sample_scene(0, split, index, assets) for split in ("train", "validation", "test") for index in range(100)
    )
    found = hashlib.sha256("".join(scene.as_json() for scene in scenes).encode())
    assert found.hexdigest() == "7c63b77895455690711519839fe24b744686a181931911e5d2c8823f9d04f315"


def around(c2w: np.ndarray) -> float:
    """Degrees around the vertical that cameras [v, 4, 4] turn from the first to the last, with the sign of the turning."""
    forward = c2w[:, :2, 2]  # each looks along its third axis
    heading = forward[:, 0] + 1j * forward[:, 1]
    return float(np.degrees(np.angle(heading[1:] / heading[:-1])).sum())


def test_cameras_sweep_what_is_asked_for_on_every_path(assets):
    spans, paths = [], set()
    for index in range(200):
        arc = sample_scene(0, "train", index, assets, (15, 60)).arc
        spans.append(around(drawing.arc_cameras(arc, 8, np.array([1.0, 2, 3]), 2.0)))
        paths.add("dolly" if arc.dolly else "rising" if abs(arc.climb) > 12 else "around")
    assert paths == {"dolly", "rising", "around"}
    size = np.abs(spans)
    assert 15 - 1e-3 < size.min() < 20 and 55 < size.max() < 60 + 1e-3
    assert 0.4 < (np.array(spans) > 0).mean() < 0.6


@pytest.mark.parametrize("sweep", [(0, 0), (15, 60), (360, 360)])
def test_another_sweep_changes_nothing_else_of_a_scene(assets, sweep):
    for index in range(50):
        ours, usual = (sample_scene(3, "train", index, assets, asked) for asked in (sweep, None))
        assert sweep[0] <= abs(ours.arc.sweep) <= sweep[1] and ours.arc.sweep != usual.arc.sweep
        assert dataclasses.replace(ours, arc=dataclasses.replace(ours.arc, sweep=usual.arc.sweep)) == usual


def test_json_gives_the_scene_back(assets):
    for index in range(20):
        scene = sample_scene(0, "train", index, assets)
        assert Scene.from_json(scene.as_json()) == scene


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_everything_in_a_scene_is_from_its_split(assets, split):
    files = {clip.file for clip in assets.clips(split)}
    for index in range(150):
        scene = sample_scene(0, split, index, assets)
        used = {subject.file for subject in scene.subjects} | {subject.texture for subject in scene.subjects}
        assert used - {None} <= files
        assert scene.ground.file in [None, *assets.grounds(split)]


def test_scenes_vary_as_promised(assets):
    scenes = [sample_scene(0, "train", index, assets) for index in range(600)]
    subjects = [subject for scene in scenes for subject in scene.subjects]
    # four standard errors of a share near 0.35 of 600 scenes are 0.08
    assert abs(np.mean([scene.subjects[0].file is None for scene in scenes]) - 0.35) < 0.08
    assert {len(scene.subjects) for scene in scenes} == {1, 2}
    assert {subject.clip for subject in subjects if subject.file is None} == set(KINDS)
    assert len({subject.unit for subject in subjects}) > 50
    assert any(subject.texture for subject in subjects)
    sweeps = np.array([scene.arc.sweep for scene in scenes])
    assert (np.abs(sweeps) >= 5).all() and (np.abs(sweeps) <= 120).all() and 0.4 < (sweeps > 0).mean() < 0.6
    assert abs(np.mean([abs(scene.arc.climb) > 12 for scene in scenes]) - 0.1) < 0.05  # rising over the subject
    dollies = np.array([scene.arc.dolly for scene in scenes if scene.arc.dolly])
    assert abs(len(dollies) / len(scenes) - 0.25) < 0.07 and 0.3 < (dollies > 0).mean() < 0.7
    for values in ([s.arc.elevation for s in scenes], [s.arc.elevation + s.arc.climb for s in scenes]):
        assert min(values) > 4.99 and max(values) < 50.01 and np.ptp(values) > 40


@pytest.mark.parametrize(("dolly", "distances"), [(0.5, [2, 2.5, 3]), (-0.5, [3, 2.5, 2]), (0, [2, 2, 2])])
def test_cameras_go_away_or_come_nearer_and_are_never_nearer_than_framed(dolly, distances):
    arc = Arc(azimuth=10, sweep=40, elevation=20, climb=5, fov=40, margin=0.9, dolly=dolly)
    c2w = drawing.arc_cameras(arc, 3, np.array([1.0, 2, 3]), 2.0)
    np.testing.assert_allclose(np.linalg.norm(c2w[:, :3, 3] - [1, 2, 3], axis=1), distances, rtol=1e-6)


def test_clips_that_end_are_played_once(assets):
    ending = 0
    for index in range(400):
        for subject in sample_scene(0, "train", index, assets).subjects:
            if subject.file and not assets.model(subject.file).clips[subject.clip].loop:
                ending += 1
                assert subject.phase + subject.span <= 1 + 1e-3
    assert ending > 5


def test_every_vertex_is_inside_every_view_at_every_time(assets):
    closest = []
    for index in range(25):
        scene = sample_scene(0, "train", index, assets)
        scene_stage = drawing.set_stage(scene, 5, 6, assets)
        reach = 0.0
        for mesh in scene_stage.meshes:
            for c2w in scene_stage.c2w:
                pixels, depth = cameras.project(mesh.positions.reshape(-1, 3), scene_stage.K, c2w)
                assert depth.min() > 0.15 * scene_stage.distance  # in front of the near plane
                reach = max(reach, np.abs(2 * pixels - 1).max())
        # framing looks at 17 times and 17 views: between them a vertex may reach a little farther
        assert reach <= min(scene.arc.margin + 0.03, 1.0)
        closest.append(reach / scene.arc.margin)
    assert np.median(closest) > 0.95  # and no smaller than it must be


def test_subjects_stand_on_the_ground_and_two_do_not_touch(assets):
    pairs = 0
    for index in range(30):
        scene = sample_scene(0, "train", index, assets)
        placed = drawing.set_stage(scene, 1, 4, assets)
        assert min(mesh.positions[..., 2].min() for mesh in placed.meshes) > -1e-3
        if len(scene.subjects) == 2:
            pairs += 1
            first = dataclasses.replace(scene, subjects=scene.subjects[:1])
            count = len(drawing.set_stage(first, 1, 4, assets).meshes)
            along = np.array([np.cos(np.radians(scene.aside)), np.sin(np.radians(scene.aside)), 0])
            one = max((mesh.positions @ along).max() for mesh in placed.meshes[:count])
            other = min((mesh.positions @ along).min() for mesh in placed.meshes[count:])
            assert one < other
    assert pairs > 2


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_motion_is_periodic_and_visible(kind):
    for seed in range(5):
        model = ProceduralModel(kind, seed)
        poses = np.concatenate(model.pose(kind, np.linspace(0, 1, 9)), 1)
        assert np.allclose(poses[0], poses[-1], atol=1e-4) and np.isfinite(poses).all()
        assert np.ptp(poses, 0).max() > 0.2
        again = np.concatenate(ProceduralModel(kind, seed).pose(kind, np.linspace(0, 1, 9)), 1)
        assert np.array_equal(poses, again)


@pytest.mark.parametrize("name", SHAPES)
def test_primitives_are_closed_and_face_outward(name):
    shape = SHAPES[name]()
    a, b, c = (shape.vertices[shape.triangles[:, k]] for k in range(3))
    volume = np.einsum("mc,mc->m", a, np.cross(b, c)).sum() / 6
    areas = np.cross(b - a, c - a) / 2
    assert volume > 0.02  # positive: triangles run counter-clockwise seen from outside
    # of a closed surface the areas add up to nothing; the tips of cones and lathes are holes of radius 1e-3
    assert np.abs(areas.sum(0)).max() < 1e-4


def test_a_hue_turn_keeps_brightness_and_comes_round():
    pixels = np.random.default_rng(0).integers(60, 180, (8, 8, 3)).astype(np.uint8)
    turned = drawing.turn_hue(pixels, 120)
    assert np.abs(turned.astype(int) - pixels).max() > 20
    assert np.abs((turned - pixels.astype(float)) @ drawing.LUMA).max() < 8  # clipping at 255 may cost a little
    assert np.abs(drawing.turn_hue(pixels, 360).astype(int) - pixels).max() <= 1


def test_a_folder_of_glb_files_needs_no_manifest(tmp_path):
    names = ["tech_worker_walk", "egypt_ibis", "magic_golem"]
    for name in names:
        (tmp_path / f"{name}.glb").write_bytes((BUNDLED / f"{name}.glb").read_bytes())
    own = Assets(tmp_path)
    found = {split: own.units(split) for split in {split_of(name) for name in names}}
    assert sorted(unit for units in found.values() for unit in units) == sorted(names)
    assert own.ground(own.grounds("train")[0]).shape[2] == 3  # bundled grounds stand in


def test_missing_assets_are_named(tmp_path, assets):
    with pytest.raises(FileNotFoundError, match=r"no animated \.glb"):
        Assets(tmp_path)
    with pytest.raises(ValueError, match="no split 'dev'"):
        sample_scene(0, "dev", 0, assets)
