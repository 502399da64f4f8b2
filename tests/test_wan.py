"""From a pretrained model's folders to a sampled and scored grid, through the commands, with a tiny random Wan.

The text encoder is the real UMT5 class with random weights where transformers is installed, else a stand-in of its width.
"""

import contextlib
import dataclasses
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from wan_vae_weights import random_weights

from fourreal import cli
from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint
from fourreal.checkpoints.weights import read_weights, save_weights
from fourreal.codecs.wan import WanCodec, WanVAEConfig
from fourreal.codecs.wan.parameters import parameter_table
from fourreal.conditions import Text
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params
from fourreal.serialize import to_json
from fourreal.text import command, encoder

ROOT = Path(__file__).parents[1]
ENCODER = Path(__file__).parent / "fixtures" / "text"
WIDTH = 8  # of the tiny encoder's features
BASE = VideoDiTConfig(
    width=24, depth=2, heads=2, mlp_width=32, patch=(1, 2, 2), channels=4, conditions=(Text(width=WIDTH),), frequency_width=16,
    prediction="u",
)  # fmt: skip
NETWORK = WanVAEConfig(
    base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=(1, 1), num_res_blocks=1, temperal_downsample=(True,),
    latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.0, 2.0, 0.5, 1.0),
)  # fmt: skip
PHASES = """
import dataclasses
from fourreal.codecs.wan import WanCodec, WanVAEConfig
from fourreal.data.sources import Records
from fourreal.training.config import load_config

RELEASED = load_config("{root}/configs/wan_1b_{phase}.py")
CONFIG = dataclasses.replace(
    RELEASED,
    model=dataclasses.replace(
        RELEASED.model, width=24, depth=2, heads=2, mlp_width=32, channels=4, frequency_width=16, dtype="float32", lora_rank=2,
        conditions=(dataclasses.replace(RELEASED.model.conditions[0], width={width}),),
    ),
    data=dataclasses.replace(RELEASED.data, source=Records("latents"), views=3, times=3, batch_size=2),
    codec=WanCodec(network=WanVAEConfig(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=(1, 1), num_res_blocks=1, temperal_downsample=(True,),
        latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.0, 2.0, 0.5, 1.0),
    )),
    mesh=dataclasses.replace(RELEASED.mesh, data=1, fsdp=1, grid=1),
    sampling_steps=2, steps={steps}, eval_every=0, eval_grids=1, save_every=4,
)
"""


def run(*words) -> None:
    cli.main(list(map(str, words)))


@pytest.fixture
def encoders(monkeypatch):
    """Nothing where transformers is there."""
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers", "ftfy")):
        return

    class StandIn:
        width, config_hash = WIDTH, "abc"

        def tokens(self, prompts):
            return [[*(len(word) + 1 for word in prompt.split()), 1] for prompt in prompts]

        def features(self, tokens):
            return [np.tile(np.float32(each)[:, None] / 9, WIDTH) for each in tokens]

    for module in (command, encoder):
        monkeypatch.setattr(module, "open_encoder", lambda *_: contextlib.nullcontext(StandIn()))


def make_pipeline(folder: Path) -> None:
    """A pipeline's folder as diffusers writes it: transformer and autoencoder of random weights."""
    params = fresh_params(BASE, GridDiTConfig("base"), 0)
    params = jax.tree.map(lambda x: x + 0.02 * np.random.default_rng(0).standard_normal(x.shape, np.float32), params)
    for name in ("context", "given"):  # which Wan has not
        params["base"][name] = jax.tree.map(np.zeros_like, params["base"][name])
    spec = ModelSpec(BASE, GridDiTConfig("base"), 1, 1, (4, 4))
    save_weights(folder / "ours", params, to_json(spec))
    run("convert", "wan", folder / "ours", "--export", "--out", folder / "transformer")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps({**to_json(NETWORK), "_class_name": "AutoencoderKLWan"}))
    shapes = {entry.theirs: entry.shape for entry in parameter_table(NETWORK).values()}
    save_file(random_weights(shapes, seed=0), folder / "vae" / "diffusion_pytorch_model.safetensors")


def train_and_kill(config: Path, folder: Path, *words) -> None:
    """Trains in a process of its own, which is killed once its first checkpoint is there."""
    command = [sys.executable, str(ROOT / "train.py"), str(config), "--out", str(folder), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not any(folder.glob("checkpoints/*/files.json")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended by itself before it was killed"


@pytest.mark.slow
def test_from_released_folders_to_a_scored_grid(tmp_path, monkeypatch, encoders, capsys):
    monkeypatch.chdir(tmp_path)
    make_pipeline(tmp_path / "wan")
    counts = ("--train", 5, "--validation", 1, "--test", 2)
    run("data", "render", "--out", "pixels", "--size", 16, "--views", 3, "--times", 3, "--workers", 1, *counts)
    run("data", "captions", "pixels", "--out", "captions.txt")
    lines = Path("captions.txt").read_text().splitlines()
    run("embed-text", "captions.txt", "--encoder", ENCODER, "--out", "text.safetensors")
    run("encode", "pixels", "--codec", f"wan:weights=wan/vae,network={json.dumps(to_json(NETWORK))}", "--out", "latents",
        "--text", "text.safetensors", "--captions", "captions.txt")  # fmt: skip
    run("convert", "wan", "wan", "--out", "base")
    assert describe_checkpoint("base").codec.network == NETWORK

    text = ("--text", "text.safetensors", "--prompt", lines[0])
    clip = ("--num-times", 3, "--size", 16, 16, "--steps", 2, "--guidance-scale", 2, "--guide", "text")
    run("sample", "--checkpoint", "base", *text, *clip, "--out", "clip")
    assert np.load("clip/grid.npz")["frames"].shape == (1, 3, 16, 16, 3)

    for phase, steps, start in (("adapt", 20, "base"), ("sync", 3, "adapt"), ("tune", 3, "sync")):
        Path(f"{phase}.py").write_text(PHASES.format(root=ROOT, phase=phase, width=WIDTH, steps=steps))
        if phase == "adapt":
            train_and_kill(Path("adapt.py"), Path("adapt"), "--init-from", start)
            run("train", "adapt", "--resume")
        else:
            run("train", f"{phase}.py", "--out", phase, "--init-from", start)
    assert "resumed after" in capsys.readouterr().out
    run("train", "tune.py", "--out", "fused", "--init-from", "adapt", "--grid.fusion", "fused", "--steps", 2)
    before, after = read_weights("base"), read_weights("adapt/weights")
    frozen = [name for name in before if "mlp" in name or name.endswith("attention.query.kernel")]
    assert frozen and all((before[name] == after[name]).all() for name in frozen)
    assert any(np.any(after[name]) for name in after if name.endswith("up"))

    for model in ("tune", "fused"):
        run(
            "sample",
            "--checkpoint",
            model,
            "--vae",
            "wan/vae",
            *text,
            "--first-video",
            "--steps",
            2,
            "--out",
            f"grid_{model}",
        )
        grid = np.load(f"grid_{model}/grid.npz")
        assert grid["frames"].shape == (3, 3, 16, 16, 3) and grid["given"].tolist() == [
            [True] * 3,
            [False] * 3,
            [False] * 3,
        ]
    scored = (
        "--seeds",
        1,
        "--samples",
        2,
        "--control-grids",
        2,
        "--probe",
        "--lpips",
        "none",
        "--steps",
        2,
        "--out",
        "scores",
    )
    told = ("--text", "text.safetensors", "--captions", "captions.txt")
    run("evaluate", "--checkpoint", "tune", "--vae", "wan/vae", "--data", "pixels", *told, *scored)
    assert "2 steps" in Path("scores/scores.jsonl").read_text()
    assert "text silent" in capsys.readouterr().out  # the probe's

    run("convert", "wan", "tune", "--export", "--out", "exported", "--leave-out", "sync*", "sigma_projection*", "base.given*",
        "base.context*")  # fmt: skip
    theirs, released = (
        load_file(f"{folder}/diffusion_pytorch_model.safetensors") for folder in ("exported", "wan/transformer")
    )
    changed = {name for name in released if (theirs[name] != released[name]).any()}
    assert theirs.keys() == released.keys() and changed and all("attn1.to_" in name for name in changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint", "nano", "--first-video"), "--first-video: the checkpoint has stages"),
        (("--checkpoint", "base", "--first-video"), "--first-video: the checkpoint makes 1 views"),
        (("--checkpoint", "base", "--num-views", 2), "a base makes clips, not a grid of 2 views x 2 times"),
        (("--checkpoint", "nano", "--vae", "nowhere"), "--vae nowhere: .* without an autoencoder"),
    ],
)
def test_what_no_sample_can_be_is_said_before_weights_are_read(tmp_path, monkeypatch, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec(
        dataclasses.replace(BASE, conditions=()), GridDiTConfig("base"), 1, 2, (8, 8), codec=WanCodec(network=NETWORK)
    )
    save_weights(tmp_path / "base", {}, to_json(spec))
    Image.new("RGB", (8, 8)).save("picture.png")
    with pytest.raises(SystemExit) as ended:
        run("sample", *words, "--image", "picture.png", "--out", "out")
    assert ended.value.code == 2 and not Path("out").exists()
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("model", ["base", "grid"])
def test_a_checkpoint_without_an_autoencoder_says_what_to_name(tmp_path, monkeypatch, model, capsys):
    monkeypatch.chdir(tmp_path)
    fusion = GridDiTConfig("base" if model == "base" else "none")
    spec = ModelSpec(dataclasses.replace(BASE, conditions=()), fusion, 1, 2, (8, 8), codec=WanCodec(network=NETWORK))
    save_weights(tmp_path / "weights", fresh_params(spec.model, fusion, 0), to_json(spec))
    Image.new("RGB", (8, 8)).save("picture.png")
    with pytest.raises(SystemExit) as ended:
        run("sample", "--checkpoint", "weights", "--image", "picture.png", "--out", "out")
    assert ended.value.code == 2 and not Path("out").exists()
    assert "with --vae where one samples" in capsys.readouterr().err
