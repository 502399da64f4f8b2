"""The ablation on tiny grids in memory: what runs leave, that they are paired and resumable, and what the tables say."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fourreal.checkpoints.specs import RUN_WEIGHTS
from fourreal.checkpoints.weights import read_weights
from fourreal.cli import parse
from fourreal.conditions import Hints
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.masks import MaskMix
from fourreal.data.source import Source
from fourreal.diffusion.stage import Stage
from fourreal.evaluation.ablation import command
from fourreal.evaluation.ablation.arms import ARMS, AblationConfig, changed, parse_arm
from fourreal.evaluation.ablation.command import Ablate, ablate
from fourreal.evaluation.ablation.files import file_stem
from fourreal.evaluation.ablation.grid_scores import Scorer, reference_scores
from fourreal.evaluation.ablation.report import Arm, best_learning_rate, write_report
from fourreal.metrics.pixels import psnr
from fourreal.models import VideoDiTConfig
from fourreal.scene import Cameras, Cut, Scene
from fourreal.training.config import TrainConfig, load_config
from fourreal.training.optimizer import OptimConfig
from fourreal.training.state import fresh_state
from fourreal.training.step import make_train_step, step_inputs

pytestmark = pytest.mark.slow  # runs, killed and resumed: minutes together

ARM = "all-none"
ROOT = Path(__file__).parents[2]
VIEWS, TIMES, SIZE, TOKENS = 2, 3, 4, 4
MODEL = VideoDiTConfig(
    width=12, depth=2, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8, conditions=(Hints(),)
)
UNITS = ("ab", "b", "c", "cd", "a", "d")  # of six grids; 0 and 3 show two


@dataclasses.dataclass(frozen=True)
class Units(Source):
    """Six grids of four units."""

    kind = "four_units"

    def open(self, split: str) -> "UnitScenes":
        return UnitScenes()


class UnitScenes:
    fingerprint, partial = "four units", False

    def __len__(self) -> int:
        return len(UNITS)

    def shape(self, i: int) -> tuple[int, int, int, int]:
        return 3, 4, SIZE, SIZE

    def units(self, i: int) -> frozenset[str]:
        return frozenset(UNITS[i])

    def read(self, i: int, cut) -> Scene:
        frames = np.random.default_rng(i).integers(0, 256, (3, 4, SIZE, SIZE, 3), np.uint8)
        views = len(cut.views)
        cameras = Cameras(np.ones((views, 3, 3), np.float32), np.ones((views, 4, 4), np.float32))
        return Scene(frames[np.ix_(cut.views, cut.times)], i, cameras=cameras)


CONFIG = AblationConfig(
    train=TrainConfig(
        name="tiny",
        model=MODEL,
        data=PipelineConfig(source=Units(), views=VIEWS, times=TIMES, batch_size=2, masks=MaskMix(none=0.0)),
        optim=OptimConfig(lr=0.01, warmup=0, final_lr=1.0, ema=0.5),
        steps=3,
        eval_every=2,
        eval_grids=2,
        save_every=1,
        log_every=1,
    ),
    arms=(ARM,),
    learning_rates=(0.01,),
    unit_shares=(0.5,),
    base_steps=2,
    base_batch=2,
    test_grids=3,
    probe_grids=2,
    sampling=(1, 2),
)
NAME = CONFIG.train.name


class StopAfter:
    """A stop that is asked for when `steps` steps are done, as the loop sees it; none: never."""

    def __init__(self, steps: int | None = None):
        self.steps, self.asked = steps, False

    def reached(self, steps: int) -> bool:
        self.asked = self.steps is not None and steps >= self.steps
        return self.asked


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of an ablation that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    Ablate(CONFIG, folder / "runs", folder / "docs").run()
    return folder


def record(folder: Path, arm: str = ARM) -> dict:
    (run,) = json.loads((folder / "docs" / NAME / f"{file_stem(arm)}.json").read_text())["runs"]
    return run


def test_finished_arm_has_a_file_with_settings_costs_curve_and_scores_of_every_test_grid(unbroken):
    run = record(unbroken)
    assert (run["settings"]["trains"], run["settings"]["grid"]["fusion"]) == ("all", "none")
    assert run["settings"]["data"]["unit_share"] == 0.5 and len(run["units"]) == 2
    assert run["versions"]["jax"] == jax.__version__ and run["trained_parameters"] > 0
    assert [list(point) for point in run["curve"]] == [
        ["step", "mean"],
        ["step", "mean", "time", "view", "2 steps", "losses", "probe"],
    ]
    last = run["curve"][-1]
    assert set(last["losses"]) == {"0.7", "0.9", "1"} and all(loss > 0 for loss in last["losses"].values())
    assert last["2 steps"]["all"] != last["mean"]["all"]
    assert {row["what"] for row in last["probe"]["rows"]} == {"messages", "hints"}  # `none` sends none: kept alone
    assert {row["change"] for row in last["probe"]["rows"] if row["what"] == "messages"} == {"kept"}
    assert [point["step"] for point in run["curve"]] == [2, 3]
    assert all(len(point["mean"]["moving"]) == CONFIG.test_grids for point in run["curve"])
    assert len(run["validation"]) == 2 and "loss_sigma_0.5" in run["validation"][-1]
    base = record(unbroken, "base")
    assert len(base["units"]) == 4 and base["frozen_parameters"] == 0
    assert all(len(scores["all"]) == CONFIG.test_grids for scores in base["references"].values())


def test_report_compares_every_arm_with_none_grid_by_grid_and_shows_its_plot(unbroken, tmp_path):
    """The arm that was trained, and a soft one whose grids are all 1 dB better."""
    files = tmp_path / "report"
    shutil.copytree(unbroken / "docs" / NAME, files)
    run = record(unbroken)
    run["settings"]["grid"]["fusion"] = "soft"
    for point in run["curve"]:
        for scores in (point[name] for name in ("mean", "time", "view", "2 steps") if name in point):
            scores |= {name: [value and value + 1 for value in values] for name, values in scores.items()}
    (files / "all-soft.json").write_text(json.dumps({"arm": "all-soft", "runs": [run]}))
    text = write_report(files, tmp_path / "report.md").read_text()
    (row, _) = (line for line in text.splitlines() if line.startswith("| soft |"))  # scores, readouts
    assert "| +1.00 |" in row  # too few grids for an interval
    plot = files / "all-units0.5.svg"
    assert f"]({files.name}/{plot.name})" in text and plot.read_text().startswith("<svg")


class Watched:
    """In place of a denoiser: keeps what it is shown, answers with one number of its own."""

    prediction, conditions = "x0", MODEL.conditions

    def __init__(self):
        self.seen = []

    def output(self, params, x, sigma, known, conditions=None, cells=None):
        jax.debug.callback(lambda *arrays: self.seen.extend(map(np.asarray, arrays)), x, sigma, known.mask)
        return x * params["base"]["given"]["vector"][0], x, jnp.where(known.mask, 0, sigma[:, None, None])


def inputs_of(arm: str, steps: int = 2) -> list[np.ndarray]:
    """What an arm's denoiser is shown in its first training steps: noised frames, noise levels, masks."""
    (config,) = dataclasses.replace(CONFIG, arms=(arm,)).runs(arm)
    watched = Watched()
    state = fresh_state({"base": {"given": {"vector": np.ones(1, np.float32)}}}, config)
    train_step, batches = make_train_step(watched, config), Batches(config.data, MODEL.conditions).train()
    for _ in range(steps):
        state, _ = train_step(state, step_inputs(next(batches)))
    jax.effects_barrier()
    batches.close()
    return watched.seen


def test_two_arms_see_the_same_examples_masks_and_noise():
    ours, theirs = inputs_of("all-fused-linear"), inputs_of("sync-soft")
    assert len(ours) == 6 and not np.array_equal(ours[0], ours[3])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_noise_of_a_test_grid_is_its_own_and_the_same_for_every_arm(monkeypatch):
    seen = []

    def sample(stage, params, codec, frames, given, noise, *rest, steps):
        jax.debug.callback(lambda array: seen.append(np.asarray(array)), noise)
        return frames, None

    monkeypatch.setattr(Stage, "__call__", sample)
    for arm in ("all-fused", "sync-soft"):
        Scorer(CONFIG.runs(arm)[0], 3).sampled({}, 1)
    jax.effects_barrier()
    ours, theirs = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours[:3, 0, 0, 0, 0, 0])) == 3


def test_finished_runs_are_not_trained_again(unbroken, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(command, "train_run", refuse)
    ablate(CONFIG, unbroken / "runs" / NAME, unbroken / "docs" / NAME, StopAfter())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"train": dataclasses.replace(CONFIG.train, steps=4)}, "with steps 3, not 4"),
        ({"test_grids": 2}, "with test_grids 3, not 2"),
    ],
)
def test_file_of_other_settings_is_refused(unbroken, changed, text):
    with pytest.raises(ValueError, match=text):
        config = dataclasses.replace(CONFIG, **changed)
        ablate(config, unbroken / "runs" / NAME, unbroken / "docs" / NAME, StopAfter())


def test_stopped_arm_goes_on_as_if_it_never_stopped(unbroken, tmp_path):
    files = tmp_path / "docs" / NAME
    shutil.copytree(unbroken / "runs" / NAME / "base", tmp_path / "runs" / "base")
    files.mkdir(parents=True)
    shutil.copy(unbroken / "docs" / NAME / "base.json", files)
    ablate(CONFIG, tmp_path / "runs", files, StopAfter(2))
    assert [file.stem for file in files.iterdir()] == ["base"]
    ablate(CONFIG, tmp_path / "runs", files, StopAfter())
    assert record(tmp_path) == record(unbroken)


def test_stopped_base_goes_on_before_any_arm_starts_from_it(unbroken, tmp_path):
    """Its file comes with the repository, its checkpoints are there before its end: neither says that it is trained."""
    files = tmp_path / "docs" / NAME
    files.mkdir(parents=True)
    shutil.copy(unbroken / "docs" / NAME / "base.json", files)
    ablate(CONFIG, tmp_path / "runs", files, StopAfter(1))
    assert (tmp_path / "runs" / "base" / "checkpoints" / "1").is_dir() and not (tmp_path / "runs" / ARM).exists()
    ablate(CONFIG, tmp_path / "runs", files, StopAfter())
    assert record(tmp_path)["base"] == record(unbroken)["base"]


def test_runs_from_other_weights_of_the_base_are_told_in_the_report(unbroken, tmp_path):
    shutil.copytree(unbroken / "docs" / NAME, tmp_path / "ablation")
    assert "Not all runs started from the same weights" not in (unbroken / "docs" / f"{NAME}.md").read_text()
    run = record(unbroken) | {"base": "another"}
    (tmp_path / "ablation" / "all-hard.json").write_text(json.dumps({"arm": "all-hard", "runs": [run]}))
    text = write_report(tmp_path / "ablation", tmp_path / "ablation.md").read_text()
    assert "**Not all runs started from the same weights of it**" in text


def test_flops_a_step_are_those_of_forward_and_backward_by_hand(unbroken):
    """Each product costs as much again for the gradient of each factor that trains or leads to what trains."""
    run, d, m = record(unbroken), MODEL.width, MODEL.mlp_width
    cells = 2 * VIEWS * TIMES
    n, area = cells * TOKENS, 2 * 2
    embed = 2 * n * (3 * area + 2 * 4 * area) * d  # pixels and the two hints, which lead nowhere
    sinusoid = 2 * cells * MODEL.frequency_width * d
    noise_level = 2 * cells * (d * d + 6 * d * d)
    head = 2 * 2 * n * d * (3 * area + 3 * area)  # of each stream: pixels and three copy gates
    linear = 2 * 2 * n * (4 * d * d + 2 * d * m)
    attention = 2 * 2 * (2 * VIEWS * (TIMES * TOKENS) ** 2 + 2 * TIMES * (VIEWS * TOKENS) ** 2) * d
    layers = MODEL.depth * (linear + attention)
    assert run["flops_a_step"] == 2 * (embed + sinusoid) + 3 * (noise_level + head + layers)


# Settings


def test_an_arm_that_has_nothing_to_train_is_its_base_scored_once(unbroken, tmp_path):
    """The streams of `none` are the base, and so are its parameters: whoever reads them samples the same."""
    config = dataclasses.replace(CONFIG, arms=("sync-none",), seeds=(0, 1))
    shutil.copytree(unbroken / "runs" / NAME / "base", tmp_path / "runs" / "base")
    files = tmp_path / "docs" / NAME
    files.mkdir(parents=True)
    shutil.copy(unbroken / "docs" / NAME / "base.json", files)
    ablate(config, tmp_path / "runs", files, StopAfter())
    run = record(tmp_path, "sync-none")
    (point,) = run["curve"]
    assert (run["trained_parameters"], run["flops_a_step"], point["step"]) == (0, 0, 0)
    params = traverse_util.unflatten_dict(read_weights(tmp_path / "runs" / "base" / RUN_WEIGHTS), sep=".")
    assert Scorer(config.runs("sync-none")[0], 3).sampled(params, 1) == point["mean"]


def test_an_arm_whose_settings_change_the_model_starts_from_a_base_of_its_own():
    arm = 'sync-soft:model.depth=3,loss.heads=0.5,grid.fusion=soft:every=2,model.conditions=[{"kind": "hints", "drop": 0.1}]'
    name, settings = parse_arm(arm)
    assert name == "sync-soft" and settings["model.conditions"] == [{"kind": "hints", "drop": 0.1}]
    (run,) = CONFIG.runs(arm)
    assert (run.model.depth, run.loss.heads, run.grid.fusion, run.trains) == (3, 0.5, "soft:every=2", "sync")
    base = CONFIG.base_config(CONFIG.base_of(arm))
    assert base.model == run.model != CONFIG.train.model and base.loss == CONFIG.train.loss
    assert CONFIG.base_of("all-soft:loss.heads=1") == "base"


@pytest.mark.parametrize(("setting", "text"), [("loss.head", "did you mean 'loss.heads'"), ("model.depth=x", "whole")])
def test_settings_of_an_arm_that_are_none_are_refused(setting, text):
    with pytest.raises(ValueError, match=text):
        changed(CONFIG.train, parse_arm(f"all-soft:{setting if '=' in setting else setting + '=1'}")[1])


def test_references_are_the_copies_and_the_floors_of_a_source_that_knows_them():
    data = PipelineConfig(source="shift_and_roll:form=sprites", views=3, times=3, batch_size=2)
    found = reference_scores(data, 3)
    assert list(found)[:2] == ["copy of the freeze-time frame", "copy of the fixed-view frame"]
    scenes, cut = data.source.open("test"), Cut(np.arange(3), np.arange(3))
    for name, frames in scenes.floors(2, cut).items():
        scene, unknown = scenes.read(2, cut), np.ones((3, 3), bool)
        unknown[0] = unknown[:, 0] = False
        for column, pixels in (("all", True), ("subject", scene.more["subject"])):
            where = unknown[:, :, None, None] & pixels
            expected = psnr(np.round(frames).astype(np.uint8), scene.frames, where)
            assert found[name][column][2] == pytest.approx(expected, abs=1e-3)


def test_arms_are_all_fusions_in_every_regime_and_the_controls():
    assert len(ARMS) == 4 * (5 + 2)
    assert all(grid.matched == name.endswith("-linear") for name, (_, grid) in ARMS.items())


def test_runs_of_an_arm_differ_in_seed_rate_and_share_alone():
    config = dataclasses.replace(CONFIG, seeds=(0, 1), learning_rates=(0.1, 0.2), unit_shares=(0.1, 1.0))
    runs = config.runs("attention-fused-linear")
    assert len(runs) == 8 == len({run.name for run in runs})
    assert {(run.trains, run.grid.fusion, run.grid.matched) for run in runs} == {("attention", "fused", True)}
    assert all(run.seed == run.data.seed for run in runs)
    assert {(run.seed, run.optim.lr, run.data.unit_share) for run in runs} == {
        (seed, lr, share) for seed in (0, 1) for lr in (0.1, 0.2) for share in (0.1, 1.0)
    }


def test_bundled_config_runs_the_main_arms_and_is_overridden_by_name():
    path = str(ROOT / "configs" / "shift_and_roll.py")
    config = load_config(path, AblationConfig)
    assert (config.train.data.source.form, config.unit_shares, config.seeds) == ("sprites", (1.0,), (0, 1))
    changed = parse("ablate", [path, "--arms", "all-soft", "--seeds", "0", "1", "--train.steps", "7", "--report"])
    assert changed.report and changed.config.arms == ("all-soft",) and changed.config.seeds == (0, 1)
    assert changed.config.train == dataclasses.replace(config.train, steps=7)


@pytest.mark.parametrize(
    ("settings", "text"), [({"arms": ("all-softt",)}, "no arm 'all-softt'"), ({"seeds": ()}, "seeds")]
)
def test_unknown_arm_and_empty_list_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(CONFIG, **settings)


# Tables


def arm(curve: dict[int, list[float]], fusion: str = "soft", **last) -> Arm:
    """An arm of one run with a score a grid at each step."""
    points = [{"step": step, "mean": {"all": values}} for step, values in curve.items()]
    points[-1] |= last
    grid = {"fusion": fusion, "matched": False}
    return Arm("all-soft", [{"settings": {"trains": "all", "grid": grid}, "flops_a_step": 1, "curve": points}])


def test_scores_are_read_between_evaluations():
    one = arm({10: [1.0, 2.0], 20: [3.0, 6.0]})
    np.testing.assert_allclose(one.scores(12, "all"), [1.4, 2.8])
    assert np.isnan(one.scores(9, "all")).all()  # before the first evaluation nothing is known
    assert one.steps_to(1.5, "all") == 10 and one.steps_to(4.5, "all") == 20 and one.steps_to(4.6, "all") is None


def test_scores_of_an_arm_are_the_mean_of_its_seeds_grid_by_grid():
    both = Arm("all-soft", arm({5: [1.0, None, 4.0]}).runs + arm({5: [3.0, 5.0, 0.0]}).runs)
    np.testing.assert_allclose(both.scores(5, "all"), [2.0, np.nan, 2.0])
    np.testing.assert_array_equal(both.seeds("all"), [[1, np.nan, 4], [3, 5, 0]])


def test_messages_are_worth_what_a_grid_loses_by_another_scenes_at_the_highest_noise():
    def row(change: str, sigma: float, *psnr: float, layer: int | None = None) -> dict:
        return {"what": "messages", "change": change, "stream": None, "layer": layer, "sigma": sigma, "psnr": psnr}

    rows = [row("kept", 0.7, 9, 9), row("foreign", 0.7, 1, 1), row("kept", 1.0, 20, 30), row("foreign", 1.0, 18, 25)]
    probed = arm({5: [1.0, 2.0]}, probe={"rows": [*rows, row("foreign", 1.0, 0, 0, layer=0)]})
    np.testing.assert_array_equal(probed.worth("foreign"), [2, 5])
    assert probed.worth("silent") is None and arm({5: [1.0]}).worth("foreign") is None


def test_learning_rate_is_chosen_by_validation():
    def run(lr: float, validation: float) -> dict:
        settings = {"data": {"unit_share": 0.1}, "optim": {"lr": lr}}
        return {"settings": settings, "validation": [{"psnr_all": 99.0}, {"psnr_all": validation}]}

    runs = [run(0.1, 20.0), run(0.1, 22.0), run(0.2, 21.5), run(0.2, 20.7)]
    assert best_learning_rate("all-soft", runs, 0.1).runs == runs[2:]
    assert best_learning_rate("all-soft", runs, 1.0) is None
