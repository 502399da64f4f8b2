"""A cascade: every stage at its own size with its own noise, the next one told what the one before made."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

import fourreal
from fourreal import cli
from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint, stage_folders
from fourreal.checkpoints.weights import save_weights
from fourreal.conditions import Cameras, Hints, LowRes, Prope
from fourreal.errors import UserError
from fourreal.evaluation.evaluate import EvaluationGrid, with_parts_left_out
from fourreal.evaluation.probe import probe_pipeline
from fourreal.geometry.trajectories import trajectory
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params
from fourreal.sampling.cascade import Cascade
from fourreal.sampling.pipeline import GridPipeline
from fourreal.scene import reduced_cameras, reduced_frames
from fourreal.serialize import to_json

BASE = VideoDiTConfig(width=24, depth=1, heads=3, mlp_width=32, patch=(1, 4, 4), conditions=(Hints(),))
LOW = ModelSpec(replace(BASE, conditions=(Hints(), Cameras(), Prope())), GridDiTConfig("soft"), 2, 3, (8, 8))
HIGH = ModelSpec(replace(BASE, conditions=(Hints(), LowRes(factor=2))), GridDiTConfig("soft"), 2, 3, (16, 16))
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(256, size=(2, 3, 16, 16, 3), dtype=np.uint8)
GIVEN = np.array([[True, True, True], [True, False, False]])


def params(spec: ModelSpec) -> dict:
    fresh = fresh_params(spec.model, spec.grid, 0)
    return jax.tree.map(lambda x: x + 0.05 * RNG.standard_normal(x.shape, np.float32), fresh)


@pytest.fixture(scope="module")
def weights():
    return params(LOW), params(HIGH)


@pytest.fixture(scope="module")
def cascade(weights):
    return Cascade(tuple(GridPipeline(spec, each) for spec, each in zip((LOW, HIGH), weights, strict=True)))


class Spied:
    """A stage that tells what it is asked to guide by."""

    def __init__(self, stage, asked):
        self.config, self.conditions, self._stage, self._asked = stage.config, stage.conditions, stage, asked

    def __call__(self, *arguments, guide, guidance_scale, **options):
        self._asked.append([tuple(sorted(guide)), guidance_scale])
        return self._stage(*arguments, **options)


@pytest.fixture
def folder(weights, tmp_path):
    """The cascade as a folder of weights."""
    save_weights(tmp_path / "both", weights[1], to_json(HIGH))
    save_weights(tmp_path / "both" / "low", weights[0], to_json(LOW))
    return tmp_path / "both"


def test_guidance_by_what_one_stage_takes_guides_that_stage_alone(cascade):
    """The first stage takes cameras, the second none: without them its two branches would be the same, at twice the work."""
    low, high = cascade.stages
    asked = []
    stages = tuple(Spied(stage, asked) for stage in (low, high))
    cameras = trajectory("orbit:60", 2, (16, 16))
    options = {"cameras": cameras, "guidance_scale": 3.0, "steps": 1}
    Cascade(stages)(FRAMES, GIVEN, guide=("cameras",), **options)
    Cascade(stages)(FRAMES, GIVEN, **options)
    guided, plain = [("cameras",), 3.0], [(), 1.0]
    assert asked == [guided, plain, [("given",), 3.0], [("given",), 3.0]]
    with pytest.raises(
        UserError, match=r"guidance by text: .* expected some of given, hints, cameras, (prope, )?low_res"
    ):
        cascade(FRAMES, GIVEN, guide=("text",), **options)


def test_the_first_stage_samples_the_reduced_grid_and_the_next_is_told_it(cascade):
    low, high = cascade.stages
    result = cascade(FRAMES, GIVEN, steps=2, seed=3)
    assert result.shape == FRAMES.shape
    np.testing.assert_array_equal(result[GIVEN], FRAMES[GIVEN])
    small = low(reduced_frames(FRAMES, 2), GIVEN, steps=2, seed=3)
    seen = []
    Cascade((low, _Spy(high, seen)))(FRAMES, GIVEN, steps=2, seed=3)
    told = seen[0]["conditions"]["low_res"]
    blur = (told.frames - (1 - told.level) * (small / np.float32(127.5) - 1)) / told.level
    assert told.level == np.float32(0.1) and abs(blur.mean()) < 0.1 and abs(blur.std() - 1) < 0.1  # 1,152 draws
    np.testing.assert_array_equal(high(FRAMES, GIVEN, conditions={"low_res": told}, steps=2, seed=3, stage=1), result)
    assert (high(FRAMES, GIVEN, conditions={"low_res": told}, steps=2, seed=3) != result).any()  # noise of its own


class _Spy:
    """A stage that writes down what it is called with."""

    def __init__(self, stage, seen):
        self.stage, self.seen, self.config, self.conditions = stage, seen, stage.config, stage.conditions

    def __call__(self, frames, given, **options):
        self.seen.append(options)
        return self.stage(frames, given, **options)


def test_unknown_cells_are_not_read_and_seeds_are_as_alone(cascade):
    hidden = np.where(GIVEN[..., None, None, None], FRAMES, np.uint8(9))
    both = cascade(hidden, GIVEN, steps=1, seed=[0, 1])
    for seed, result in enumerate(both):
        np.testing.assert_array_equal(cascade(FRAMES, GIVEN, steps=1, seed=seed), result)
    assert (both[0] != both[1]).any()


@pytest.mark.slow
def test_cameras_reach_the_stages_that_take_them_in_pixels_of_their_size(cascade):
    cameras = trajectory("orbit:40", 2, (16, 16))
    result = cascade(FRAMES, GIVEN, cameras=cameras, steps=1)
    assert (cascade(FRAMES, GIVEN, steps=1) != result).any() and cascade.cameras_taken
    seen = [], []
    spied = Cascade(tuple(_Spy(*each) for each in zip(cascade.stages, seen, strict=True)))
    np.testing.assert_array_equal(spied(FRAMES, GIVEN, cameras=cameras, steps=1), result)
    told = seen[0][0]["conditions"]["cameras"]
    np.testing.assert_array_equal(seen[0][0]["conditions"]["prope"].K, told.K)
    np.testing.assert_allclose(told.K, cameras.K * np.float32([[0.5], [0.5], [1]]), rtol=1e-6)  # halves are exact
    np.testing.assert_array_equal(told.c2w, cameras.c2w)
    assert "cameras" not in seen[1][0]["conditions"]
    with pytest.raises(UserError, match="no stage of this checkpoint takes text"):
        cascade(FRAMES, GIVEN, conditions={"text": np.zeros((2, 3))})


@pytest.mark.slow
def test_a_folder_within_a_folder_of_weights_is_the_stage_before(folder, cascade):
    assert stage_folders(folder) == [folder / "low", folder] and describe_checkpoint(folder) == HIGH
    pipe = fourreal.load_pipeline(folder)
    assert isinstance(pipe, Cascade) and pipe.config == HIGH and pipe.weights_hash.count("+") == 1
    # weights are stored in 16 bits
    assert np.abs(pipe(FRAMES, GIVEN, steps=1).astype(int) - cascade(FRAMES, GIVEN, steps=1)).max() <= 4
    alone = fourreal.load_pipeline(folder / "low")
    small = reduced_frames(FRAMES, 2)
    np.testing.assert_array_equal(alone(small, GIVEN, steps=1), pipe.stages[0](small, GIVEN, steps=1))


@pytest.mark.slow
def test_an_evaluation_leaves_parts_out_of_the_first_stage_and_probes_it(cascade):
    variants = with_parts_left_out(cascade)
    assert set(variants) == {"time stream only", "view stream only", "streams never meet"}
    for variant in variants.values():
        assert variant.stages[1] is cascade.stages[1] and variant.stages[0].config.grid != LOW.grid
    cameras = trajectory("orbit:40", 2, (16, 16))
    grids = [EvaluationGrid(np.roll(FRAMES, shift, 3), GIVEN, cameras) for shift in (0, 5)]
    half = reduced_cameras(cameras, 2)
    small = [EvaluationGrid(reduced_frames(grid.truth, 2), GIVEN, half) for grid in grids]
    found, expected = (probe_pipeline(*each, (1.0,)) for each in ((cascade, grids), (cascade.stages[0], small)))
    assert found.to_json() == expected.to_json()


def test_stages_that_do_not_fit_are_refused(cascade, weights, folder):
    low, high = cascade.stages
    with pytest.raises(UserError, match="a stage after the first enlarges"):
        Cascade((high, low))
    with pytest.raises(UserError, match="give stages that fit"):
        Cascade((GridPipeline(replace(LOW, size=(4, 4)), weights[0]), high))
    shutil.copytree(folder / "low", folder / "low" / "low")
    with pytest.raises(UserError, match="a stage after the first enlarges"):
        fourreal.load_pipeline(folder)


def test_the_command_line_samples_all_stages_or_the_first_ones(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "grid.npz", frames=FRAMES)
    sizes = {}
    for name, options in (("both", ()), ("low", ("--stage", "1"))):
        cli.main(
            [
                "sample",
                "--checkpoint",
                str(folder),
                "--grid",
                "grid.npz",
                "--steps",
                "1",
                "--out",
                f"out-{name}",
                *options,
            ]
        )
        sizes[name] = np.load(tmp_path / f"out-{name}" / "grid.npz")["frames"].shape
    assert sizes == {"both": (2, 3, 16, 16, 3), "low": (2, 3, 8, 8, 3)}
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--checkpoint", str(folder), "--grid", "grid.npz", "--stage", "3"])
    assert stop.value.code == 2 and "has 2 stages; give 1 to 2" in capsys.readouterr().err
