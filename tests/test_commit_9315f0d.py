"""What commit 9315f0d stored loads and gives what it gave; `fixtures/make_commit_9315f0d.py` made the fixtures with it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import fourreal
from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint
from fourreal.checkpoints.weights import fit_weights, read_config, read_weights, save_weights
from fourreal.conditions import Cameras, Hints
from fourreal.errors import UserError
from fourreal.models.build import split_model
from fourreal.scene import Cameras as CameraValue
from fourreal.serialize import to_json
from fourreal.training.config import TrainConfig
from fourreal.training.loop import run
from fourreal.training.run_folder import Start

FIXTURE = Path(__file__).parent / "fixtures" / "commit_9315f0d"
TINY = dict(np.load(FIXTURE / "tiny.npz"))
CAMERAS = CameraValue(TINY["K"], TINY["c2w"])
# other programs sum in another order: two layers, outputs up to 3
TOLERANCE = 1e-5


def load(folder: str) -> tuple[nnx.Module, ModelSpec]:
    """The model of a folder of the fixture, with its weights, and what is stored of it."""
    spec = describe_checkpoint(FIXTURE / folder)
    graph, shapes = split_model(spec.model, spec.grid)
    params = fit_weights(read_weights(FIXTURE / folder / "weights"), shapes, folder)
    return nnx.merge(graph, nnx.State(params)), spec


def test_settings_of_the_base_become_conditions_and_a_base_alone_a_fusion():
    for folder, fusion in (("run", "hard"), ("base", "base")):
        spec = describe_checkpoint(FIXTURE / folder)
        assert spec.model.conditions == (Hints(), Cameras())
        assert spec.grid.fusion == fusion and spec.size == (4, 4)


def test_grid_model_computes_what_it_computed():
    model, _ = load("run")
    cameras = CameraValue(TINY["K"][None], TINY["c2w"][None])
    out = jax.jit(model)(*(TINY[name] for name in ("x", "sigma", "given")), {"cameras": cameras})
    np.testing.assert_allclose(out, TINY["grid"], atol=TOLERANCE)


@pytest.mark.parametrize(("context", "clip"), [("dynamic", np.s_[:, 1]), ("freeze_time", np.s_[:, :, 1])])
def test_base_computes_what_it_computed_on_clips_with_the_same_hints(context, clip):
    """Its default hints have changed: a clip now has those that it would have as a grid."""
    model, _ = load("base")
    grid = np.s_[:, :, None] if context == "freeze_time" else np.s_[:, None]
    views = np.s_[None] if context == "freeze_time" else np.s_[None, 1:2]
    told = {
        "hints": TINY[f"hints_{context}"][grid],
        "cameras": CameraValue(TINY["K"][views], TINY["c2w"][views]),
    }
    forward = jax.jit(lambda x, sigma, given, told: model.base(x, sigma, given, told | {"context": context}))
    out = forward(*(TINY[name][clip] for name in ("x", "sigma", "given")), told)
    np.testing.assert_allclose(out, TINY[context], atol=TOLERANCE)


def test_pipeline_of_the_run_samples_the_same_grid_within_one_level():
    pipe = fourreal.load_pipeline(FIXTURE / "run")
    found = pipe(TINY["pixels"], TINY["given"][0], cameras=CAMERAS, steps=3, seed=5)
    assert np.abs(found.astype(int) - TINY["sampled"].astype(int)).max() <= 1


def test_resuming_the_run_is_refused_in_one_line_that_says_what_to_do_and_leaves_it_as_it_was(tmp_path, tiny):
    folder = tmp_path / "run"
    shutil.copytree(FIXTURE / "run", folder)
    config = TrainConfig(name="grids", model=tiny.config(hints=True, cameras=True), steps=4)
    with pytest.raises(UserError, match=r"earlier version.*--init-from") as error:
        run(config, folder, Start(resume=True))
    assert "\n" not in str(error.value)
    for file in FIXTURE.joinpath("run").rglob("*"):
        if file.is_file():
            assert (folder / file.relative_to(FIXTURE / "run")).read_bytes() == file.read_bytes()


def test_what_is_saved_now_carries_a_version_and_a_newer_one_is_refused(tmp_path):
    model, spec = load("run")
    save_weights(tmp_path, nnx.to_pure_dict(nnx.state(model)), to_json(spec), dtype="float32")
    stored = read_config(tmp_path)
    assert type(stored["version"]) is int and stored["version"] >= 1
    assert describe_checkpoint(tmp_path) == spec
    (tmp_path / "config.json").write_text(json.dumps(stored | {"version": stored["version"] + 1}))
    with pytest.raises(UserError, match="upgrade fourreal") as error:
        describe_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["1", -1, None, True, 1.0])
def test_version_that_is_none_is_refused(tmp_path, version):
    shutil.copytree(FIXTURE / "run" / "weights", tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(read_config(tmp_path) | {"version": version}))
    with pytest.raises(UserError, match="has version"):
        describe_checkpoint(tmp_path)
