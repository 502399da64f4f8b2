"""The ablation on tiny grids in memory: what runs leave, that they are paired and resumable, and what the tables say."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from fourreal.cli import parse
from fourreal.conditions import Hints
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.masks import MaskMix
from fourreal.data.source import Source
from fourreal.diffusion.stage import Stage
from fourreal.evaluation.ablation import command
from fourreal.evaluation.ablation.arms import ARMS, AblationConfig
from fourreal.evaluation.ablation.command import Ablate, ablate
from fourreal.evaluation.ablation.grid_scores import make_scorer
from fourreal.evaluation.ablation.report import (
    Arm,
    best_learning_rate,
    equal_flops_steps,
    write_report,
)
from fourreal.models import VideoDiTConfig
from fourreal.scene import Cameras, Scene
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
)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs are compiled quickly and once."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def quickly(compile_quickly):
    jax.config.update("jax_disable_most_optimizations", True)


class StopAfter:
    """A stop that is asked for when `steps` steps are done, as the loop sees it; none: never."""

    def __init__(self, steps: int | None = None):
        self.steps, self.asked = steps, False

    def reached(self, steps: int) -> bool:
        self.asked = self.steps is not None and steps >= self.steps
        return self.asked


@pytest.fixture(scope="module")
def unbroken(compiled_once, tmp_path_factory) -> Path:
    """The folder of an ablation that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    jax.config.update("jax_disable_most_optimizations", True)
    Ablate(CONFIG, folder / "runs", folder / "docs").run()
    return folder


def record(folder: Path, arm: str = ARM) -> dict:
    (run,) = json.loads((folder / "docs" / "ablation" / f"{arm}.json").read_text())["runs"]
    return run


def test_finished_arm_has_a_file_with_settings_costs_curve_and_scores_of_every_test_grid(unbroken):
    run = record(unbroken)
    assert (run["settings"]["trains"], run["settings"]["grid"]["fusion"]) == ("all", "none")
    assert run["settings"]["data"]["unit_share"] == 0.5 and len(run["units"]) == 2
    assert run["versions"]["jax"] == jax.__version__ and run["trained_parameters"] > 0
    assert [list(point) for point in run["curve"]] == [["step", "mean"], ["step", "mean", "time", "view"]]
    assert [point["step"] for point in run["curve"]] == [2, 3]
    assert all(len(point["mean"]["moving"]) == CONFIG.test_grids for point in run["curve"])
    assert len(run["validation"]) == 2 and "loss_sigma_0.5" in run["validation"][-1]
    base = record(unbroken, "base")
    assert len(base["units"]) == 4 and base["frozen_parameters"] == 0
    assert all(len(scores["all"]) == CONFIG.test_grids for scores in base["copies"].values())


def test_report_compares_every_arm_with_soft_grid_by_grid_and_shows_its_plot(unbroken, tmp_path):
    """The arm that was trained, and a soft one whose grids are all 1 dB better."""
    files = tmp_path / "ablation"
    shutil.copytree(unbroken / "docs" / "ablation", files)
    assert "**Preliminary**" in (unbroken / "docs" / "ablation.md").read_text()
    run = record(unbroken)
    run["settings"]["grid"]["fusion"] = "soft"
    for point in run["curve"]:
        for scores in (value for value in point.values() if isinstance(value, dict)):
            scores |= {name: [value and value + 1 for value in values] for name, values in scores.items()}
    (files / "all-soft.json").write_text(json.dumps({"arm": "all-soft", "runs": [run]}))
    text = write_report(files, tmp_path / "ablation.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| all | none |")]
    assert len(rows) == 3  # equal steps, equal FLOPs, readouts
    assert all("| -1.00 |" in row for row in rows[:2])  # too few grids for an interval
    assert "](ablation/units0.5.svg)" in text and (files / "units0.5.svg").read_text().startswith("<svg")


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
        make_scorer(CONFIG.runs(arm)[0], count=3)({}, "mean")
    jax.effects_barrier()
    ours, theirs = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours[:3, 0, 0, 0, 0, 0])) == 3


def test_finished_runs_are_not_trained_again(unbroken, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(command, "train_run", refuse)
    ablate(CONFIG, unbroken / "runs", unbroken / "docs" / "ablation", StopAfter())


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
        ablate(config, unbroken / "runs", unbroken / "docs" / "ablation", StopAfter())


def test_stopped_arm_goes_on_as_if_it_never_stopped(unbroken, tmp_path):
    files = tmp_path / "docs" / "ablation"
    shutil.copytree(unbroken / "runs" / "base", tmp_path / "runs" / "base")
    files.mkdir(parents=True)
    shutil.copy(unbroken / "docs" / "ablation" / "base.json", files)
    ablate(CONFIG, tmp_path / "runs", files, StopAfter(2))
    assert [file.stem for file in files.iterdir()] == ["base"]
    ablate(CONFIG, tmp_path / "runs", files, StopAfter())
    assert record(tmp_path) == record(unbroken)


def test_stopped_base_goes_on_before_any_arm_starts_from_it(unbroken, tmp_path):
    """Its file comes with the repository, its weights are written at every save: neither says that it is trained."""
    files = tmp_path / "docs" / "ablation"
    files.mkdir(parents=True)
    shutil.copy(unbroken / "docs" / "ablation" / "base.json", files)
    ablate(CONFIG, tmp_path / "runs", files, StopAfter(1))
    assert (tmp_path / "runs" / "base" / "weights").is_dir() and not (tmp_path / "runs" / ARM).exists()
    ablate(CONFIG, tmp_path / "runs", files, StopAfter())
    assert record(tmp_path)["base"] == record(unbroken)["base"]


def test_runs_from_other_weights_of_the_base_are_told_in_the_report(unbroken, tmp_path):
    shutil.copytree(unbroken / "docs" / "ablation", tmp_path / "ablation")
    assert "Not all runs started from the same weights" not in (unbroken / "docs" / "ablation.md").read_text()
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


def test_arms_are_soft_and_hard_for_sync_all_five_else_and_the_controls():
    assert len(ARMS) == 2 + 5 + 5 + 2 + 2
    assert {name for name, (trains, _) in ARMS.items() if "sync" in trains} == {"sync-soft", "sync-hard"}
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
    path = str(ROOT / "configs" / "ablation.py")
    config = load_config(path, AblationConfig)
    assert (config.train.steps, config.train.data.batch_size, config.unit_shares) == (2000, 16, (0.1,))
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


def arm(flops: int, curve: dict[int, list[float]], fusion: str = "soft", **settings) -> Arm:
    """An arm of one run with a score a grid at each step."""
    points = [{"step": step, "mean": {"all": values}} for step, values in curve.items()]
    grid = {"fusion": fusion, "matched": False}
    return Arm([{"settings": {"trains": "all", "grid": grid, **settings}, "flops_a_step": flops, "curve": points}])


def test_equal_flops_are_those_of_the_cheapest_run_and_scores_are_read_between_evaluations():
    dear, cheap = arm(100, {10: [1.0, 2.0], 20: [3.0, 6.0]}), arm(60, {20: [0.0, 0.0]})
    steps = equal_flops_steps([dear, cheap])
    assert steps == [12.0, 20.0]
    np.testing.assert_allclose(dear.scores(steps[0], "all"), [1.4, 2.8])
    assert np.isnan(dear.scores(9, "all")).all()  # before the first evaluation nothing is known


def test_scores_of_an_arm_are_the_mean_of_its_seeds_grid_by_grid():
    both = Arm(arm(1, {5: [1.0, None, 4.0]}).runs + arm(1, {5: [3.0, 5.0, 0.0]}).runs)
    np.testing.assert_allclose(both.scores(5, "all"), [2.0, np.nan, 2.0])


def test_learning_rate_is_chosen_by_validation():
    def run(lr: float, validation: float) -> dict:
        settings = {"data": {"unit_share": 0.1}, "optim": {"lr": lr}}
        return {"settings": settings, "validation": [{"psnr_all": 99.0}, {"psnr_all": validation}]}

    runs = [run(0.1, 20.0), run(0.1, 22.0), run(0.2, 21.5), run(0.2, 20.7)]
    assert best_learning_rate(runs, 0.1).runs == runs[2:]
    assert best_learning_rate(runs, 1.0) is None
