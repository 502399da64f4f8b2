"""Configs: the JSON round trip, what is refused, and settings from the command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fourreal.cli import parse
from fourreal.config import TrainConfig, load_config
from fourreal.data.pipeline import PipelineConfig
from fourreal.models import GridDiTConfig
from fourreal.models.build import split_model
from fourreal.models.checkpoints import ModelSpec
from fourreal.serialize import from_json, to_json
from fourreal.training.optimizer import OptimConfig

ROOT = Path(__file__).parents[2]
NANO = ROOT / "configs" / "nano.py"


@pytest.fixture
def config(tiny) -> TrainConfig:
    """Nothing at its default where that is easy, so that nothing can get lost unseen."""
    return TrainConfig(
        name="some",
        model=tiny.config(text_width=10, prediction="u"),
        grid=GridDiTConfig("hard", "view", "time"),
        data=PipelineConfig(views=2, times=3, clip_contexts=(0.2, 0.3, 0.5)),
        optim=OptimConfig(lr=0.02, accumulate=4),
        trains="sync",
        steps=7,
    )


def test_config_survives_json(config):
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("grid", [None, GridDiTConfig("fused")])
def test_model_spec_survives_json_with_and_without_a_grid_model(config, grid):
    spec = ModelSpec(config.model, grid, 2, 3, 4, 1.5)
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec


def test_unknown_key_is_refused_with_its_path_and_the_nearest_known_one(config):
    values = to_json(config)
    values["optim"]["learning_rte"] = 1.0
    with pytest.raises(ValueError, match=r"unknown key 'optim\.learning_rte'"):
        from_json(TrainConfig, values)
    values = to_json(config)
    values["model"]["widht"] = values["model"].pop("width")
    with pytest.raises(ValueError, match=r"'model\.widht'; did you mean 'width'\?"):
        from_json(TrainConfig, values)


def test_missing_key_is_named(config):
    values = to_json(config)
    del values["model"]["width"]
    with pytest.raises(ValueError, match=r"lacks the key 'model\.width'"):
        from_json(TrainConfig, values)


@pytest.mark.parametrize("value", [3, "text", [1], None])
def test_json_of_another_form_is_refused(config, value):
    with pytest.raises(ValueError, match="expected an object of VideoDiTConfig"):
        from_json(TrainConfig, to_json(config) | {"model": value})


@pytest.mark.parametrize("changes", [{"steps": 0}, {"save_every": 0}, {"eval_every": -1}, {"log_every": 0}])
def test_counts_out_of_range_are_refused(config, changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is"):
        dataclasses.replace(config, **changes)


def test_clips_train_the_whole_base(config):
    with pytest.raises(ValueError, match="trains 'all'"):
        dataclasses.replace(config, data=PipelineConfig(kind="clip"))


RUNS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "ablation")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_is_named_like_its_file(path):
    config = load_config(path)
    assert config.name == path.stem
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_file_that_sets_no_config_or_does_not_run_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    for text, message in (
        ("CONFIG = 3", "sets no CONFIG"),
        ("CONFIG = TrainConfig()", "does not run"),
        ("a b", "does not run"),
        ("import fourreel", "does not run"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(file)


def test_mistyped_config_file_is_refused_with_the_nearest_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"did you mean configs/nano\.py\?"):
        load_config("configs/nanno.py")


def test_command_line_overrides_single_settings_and_keeps_the_files_others():
    train = parse("train", [str(NANO), "--optim.lr", "3e-4", "--model.width", "128", "--out", "here", "--resume"])
    expected = load_config(NANO)
    assert train.config.optim == dataclasses.replace(expected.optim, lr=3e-4)
    assert train.config.model == dataclasses.replace(expected.model, width=128)
    assert train.config.data == expected.data
    assert (train.out, train.start.resume, train.start.overwrite) == (Path("here"), True, False)


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_help_of_a_config_file_shows_every_setting_with_the_files_value():
    done = call("configs/nano.py", "--help")
    assert done.returncode == 0
    for setting in ("--optim.lr", "--model.width", "--data.batch-size", "--resume", "--init-from", "--sigma.shift"):
        assert setting in done.stdout
    assert str(load_config(NANO).model.width) in done.stdout


def test_mistyped_setting_exits_2_with_the_nearest_one():
    done = call("configs/nano.py", "--optim.lrr", "3e-4")
    assert done.returncode == 2
    assert "--optim.lr" in done.stderr.replace("--optim.lrr", "")


def test_value_out_of_range_exits_2_with_one_line():
    done = call("configs/nano.py", "--steps", "0")
    assert done.returncode == 2
    assert "steps is 0: give 1 or more" in done.stderr and "Traceback" not in done.stderr


def test_tiny_has_at_most_10_million_parameters_in_heads_of_64():
    config = load_config(ROOT / "configs" / "tiny.py")
    _, shapes = split_model(config.model, config.grid)
    assert 8e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) <= 10e6
    assert config.model.width == 64 * config.model.heads and (config.data.views, config.data.times) == (8, 8)
