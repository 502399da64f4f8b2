"""Configs: the JSON round trip, what is refused, and settings from the command line."""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest
from scenes_in_memory import Noise, Pooling

from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.upgrade import VERSION, version_of
from fourreal.cli import parse
from fourreal.conditions import Cameras, Hints, Text
from fourreal.data.batches import PipelineConfig
from fourreal.data.masks import CLIPS, CutMix
from fourreal.data.source import Source
from fourreal.errors import UserError
from fourreal.models import GridDiTConfig
from fourreal.models.build import split_model
from fourreal.serialize import from_json, to_json
from fourreal.training.config import FOLDERS, TrainConfig, load_config, read_run
from fourreal.training.optimizer import OptimConfig
from fourreal.training.run_folder import make_folder

ROOT = Path(__file__).parents[2]
NANO = ROOT / "configs" / "nano.py"


@pytest.fixture
def config(tiny) -> TrainConfig:
    """Nothing at its default where that is easy, so that nothing can get lost unseen."""
    return TrainConfig(
        name="some",
        model=tiny.config(conditions=(Hints(drop=0.1), Cameras(drop=0.3), Text(width=10)), prediction="u"),
        grid=GridDiTConfig("hard", "view", "time"),
        data=PipelineConfig(source=Noise(seed=3, size=(8, 12)), views=2, times=3, cuts=CutMix(0.1, 0.2, 0.3, 0.4)),
        codec=Pooling(),
        optim=OptimConfig(lr=0.02, accumulate=4),
        trains="sync_and_conditions",
        steps=7,
    )


def test_config_survives_json(config):
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_config_of_a_run_says_its_version_and_which_condition_codec_and_source_it_has(config, tmp_path):
    make_folder(config, tmp_path, False, None, "data")
    values = json.loads((tmp_path / "config.json").read_text())
    assert version_of(values) == VERSION
    assert [each["kind"] for each in values["model"]["conditions"]] == ["hints", "cameras", "text"]
    assert (values["codec"]["kind"], values["data"]["source"]["kind"]) == ("test_pooling", "test_noise")
    assert read_run(tmp_path) == config
    (tmp_path / "config.json").write_text(json.dumps(values | {"version": VERSION + 1}))
    with pytest.raises(ValueError, match="upgrade fourreal"):
        read_run(tmp_path)


@pytest.mark.parametrize("source", [Noise(), Noise(seed=3, missing=True), Noise(size=(8, 12), latents=True)])
def test_words_of_a_source_say_what_differs_and_are_read_back(source):
    words = source.to_text()
    assert Source.from_text(words) == source
    assert ("size" in words) == (source.size != (4, 4)) and ("seed" in words) == (source.seed != 0)


@pytest.mark.parametrize("part", ["source", "codec", "condition"])
def test_stored_kind_that_no_imported_module_defines_is_refused_with_what_to_do(config, part):
    values = to_json(config)
    of = {"source": values["data"]["source"], "codec": values["codec"], "condition": values["model"]["conditions"][0]}
    of[part]["kind"] = "elsewhere"
    with pytest.raises(ValueError, match=f"there is no {part} 'elsewhere': .*--extensions MODULE"):
        from_json(TrainConfig, values)


@pytest.mark.parametrize("grid", [GridDiTConfig("base"), GridDiTConfig("fused", stride=5)])
def test_model_spec_survives_json(config, grid):
    spec = ModelSpec(config.model, grid, 2, 4, (8, 12), 1.5, Pooling())
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


def test_clips_train_no_sync_layers(config):
    base = {"grid": GridDiTConfig("base"), "data": PipelineConfig(cuts=CLIPS)}
    with pytest.raises(ValueError, match="on clips train one of all, attention, lora"):
        dataclasses.replace(config, **base)
    for trains in ("all", "attention"):
        assert dataclasses.replace(config, **base, trains=trains).grid.fusion == "base"


def test_base_is_not_trained_on_whole_grids(config):
    with pytest.raises(ValueError, match=r"grid.fusion is base, which takes clips: set data.cuts.grid 0"):
        dataclasses.replace(config, grid=GridDiTConfig("base"), trains="all")


RUNS = sorted(path for path in (ROOT / "configs").glob("*.py") if "shift_and_roll" not in path.stem)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_is_named_like_its_file(path):
    config = load_config(path)
    assert config.name == path.stem
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_hints_are_hidden_from_a_share_of_the_examples(path):
    rates = [condition.drop for condition in load_config(path).model.conditions if isinstance(condition, Hints)]
    share = {"nano_low": 0.15, "nano_up": 0.1, "quick": 0.15}.get(path.stem, 0.3)
    assert rates == ([] if path.stem.startswith(("wan", "paper")) else [share])


@pytest.mark.parametrize("name", ["wan_1b_adapt", "wan_1b_sync", "wan_1b_tune", "wan_14b_sync"])
def test_configs_of_wan_have_wans_shift_for_the_size_that_they_plan(name):
    """Wan 2.1: 5 from 720p on, 3 below; a latent is 8 x 8 pixels."""
    path = ROOT / "configs" / f"{name}.py"
    height, width = (8 * int(side) for side in re.search(r"--size (\d+) (\d+)", path.read_text()).groups())
    assert (height, width) == (288, 512)
    assert load_config(path).sigma.shift == (5 if height * width >= 720 * 1280 else 3)


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


def test_bare_name_is_found_anywhere_and_first_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_config(NANO)
    assert parse("train", ["nano"]).config == expected
    (tmp_path / "configs").mkdir()
    text = NANO.read_text().replace("steps=800", "steps=7")
    (tmp_path / "configs" / "nano.py").write_text(text)
    assert parse("train", ["nano"]).config == dataclasses.replace(expected, steps=7)
    with pytest.raises(FileNotFoundError, match="there is no config file nanno; did you mean nano"):
        load_config("nanno")


def test_wheel_carries_the_configs_where_bare_names_are_looked_for():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    (installed,) = (ROOT / inside for source, inside in wheel["force-include"].items() if source == "configs")
    assert installed in FOLDERS


def test_folder_of_a_run_stands_for_its_stored_config_and_place(tmp_path):
    stored = dataclasses.replace(load_config(NANO), steps=7)
    (tmp_path / "config.json").write_text(json.dumps({"version": VERSION, **to_json(stored)}))
    train = parse("train", [str(tmp_path), "--resume"])
    assert (train.config, train.out, train.start.resume) == (stored, tmp_path, True)
    changed = parse("train", [str(tmp_path), "--steps", "9", "--out", "other"])
    assert (changed.config, changed.out) == (dataclasses.replace(stored, steps=9), Path("other"))
    assert parse("plan", [str(tmp_path)]).config == stored
    (tmp_path / "config.json").write_text(json.dumps({"version": VERSION}))
    with pytest.raises(UserError, match=r"config\.json: TrainConfig lacks the key 'name'"):
        parse("train", [str(tmp_path), "--resume"])


@pytest.mark.parametrize(("verb", "setting"), [("train", "--optim.lr"), ("plan", "--topology"), ("ablate", "--arms")])
def test_help_without_a_config_shows_the_settings_and_where_a_config_goes(verb, setting, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(verb, ["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: fourreal {verb} CONFIG" in said
    assert (setting in said and "--model.width" in said) or "--train.model.width" in said


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
