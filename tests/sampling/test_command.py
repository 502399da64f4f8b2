"""What `fourreal sample` asks a pipeline for, what it writes, and what it refuses before any weights load."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fourreal import cli
from fourreal.checkpoints import specs as checkpoints
from fourreal.checkpoints.specs import ModelSpec
from fourreal.conditions import Cameras, Hints, Prope, Text
from fourreal.diffusion.samplers import Euler, Heun, UniPC
from fourreal.geometry.trajectories import trajectory
from fourreal.media.videos import write_video
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.sampling import inputs
from fourreal.sampling import load as pipelines
from fourreal.text import encoder
from fourreal.text.file import write_texts

SHAPE = (3, 4, 16, 16)
BASE = VideoDiTConfig(
    width=12, depth=1, heads=2, mlp_width=16, patch=(1, 4, 4), frequency_width=8, conditions=(Hints(), Cameras())
)
SPEC = ModelSpec(BASE, GridDiTConfig("hard"), views=SHAPE[0], times=SHAPE[1], size=SHAPE[2:])
TINY_UMT5 = Path(__file__).parents[1] / "fixtures" / "text"
PLAIN = {
    "conditions": {},
    "steps": None,
    "guidance_scale": 1.0,
    "guide": None,
    "method": Euler(),
    "shift": None,
    "seed": 0,
}


class GreyPipeline:
    """Answers grey in every unknown cell."""

    def __init__(self):
        self.config = SPEC
        self.weights_hash = "abc123"
        self.steps = (4,)
        self.calls = []

    def __call__(self, frames, given, **options):
        self.calls.append((frames, given, options))
        return np.where(given[:, :, None, None, None], frames, np.uint8(128))


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """A pipeline in place of the real one, which has its own tests, in a folder with clips and one test grid."""
    pipe = GreyPipeline()
    monkeypatch.setattr(pipelines, "load_pipeline", lambda name, mesh, vae: pipe)
    monkeypatch.setattr(checkpoints, "describe_checkpoint", lambda name: SPEC)
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "long.mp4", np.zeros((13, 16, 16, 3), np.uint8), fps=8)
    write_video(tmp_path / "orbit.mp4", np.full((3, 16, 16, 3), 200, np.uint8), fps=8)
    (tmp_path / "grids").mkdir()
    truth = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    np.savez(tmp_path / "grids" / "wolf.npz", frames=truth)
    monkeypatch.setattr(inputs, "GRIDS", tmp_path / "grids")
    return pipe


def sample(*argv):
    """Runs `fourreal sample`; returns its exit code."""
    try:
        cli.main(["sample", *argv])
    except SystemExit as stop:
        return stop.code
    return 0


def fails(capsys, *argv):
    """The one line with which a run refuses its input."""
    assert sample(*argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_without_inputs_a_bundled_grid_is_sampled_and_scored(pipeline, capsys, tmp_path):
    assert sample() == 0
    output = capsys.readouterr().out
    assert "copy of the freeze-time frame" in output and "open out/wolf-nano-seed0/index.html" in output
    frames, given, options = pipeline.calls[0]
    assert given[0].all() and given[:, 0].all() and not given[1:, 1:].any()
    assert (frames[1:, 1:] == 0).all()  # the truth stays hidden
    assert options == PLAIN
    assert (np.load(tmp_path / "out/wolf-nano-seed0/grid.npz")["frames"][1:, 1:] == 128).all()


def test_without_a_folder_named_a_second_sample_goes_beside_the_first(pipeline, tmp_path):
    assert sample() == 0 and sample() == 0
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["wolf-nano-seed0", "wolf-nano-seed0-2"]


def test_given_is_repeatable_and_settings_reach_pipeline_and_metadata(pipeline, capsys, tmp_path):
    argv = (
        "--given long.mp4@v=1 --given orbit.mp4@t=0 --frames 1:13:2 --steps 3 --seed 5 --guidance-scale 2 --out out/a"
    )
    assert sample(*argv.split()) == 0
    output = capsys.readouterr().out
    assert "long.mp4: 13 frames -> 1, 3, 5, 7" in output and "PSNR" not in output
    _, given, options = pipeline.calls[0]
    assert given.tolist() == [[True] + [False] * 3, [True] * 4, [True] + [False] * 3]
    assert options == PLAIN | {"steps": 3, "guidance_scale": 2.0, "seed": 5}
    stored = json.loads((tmp_path / "out/a/metadata.json").read_text())
    assert stored["grid"]["fps"] == pytest.approx(3 * 8 / 6)
    assert stored["options"]["given"] == ["long.mp4@v=1", "orbit.mp4@t=0"] and stored["options"]["seed"] == 5
    assert stored["weights_hash"] == "abc123" and stored["model"]["grid"]["fusion"] == "hard"
    assert stored["versions"]["jax"] and stored["timings_s"]["sample"] >= 0


def test_sugar_is_the_same_as_given(pipeline):
    assert sample("--video", "long.mp4", "--orbit", "orbit.mp4", "--out", "out/a") == 0
    assert sample("--given", "long.mp4@v=0", "--given", "orbit.mp4@t=0", "--out", "out/b") == 0
    (frames_a, given_a, _), (frames_b, given_b, _) = pipeline.calls
    assert (frames_a == frames_b).all() and (given_a == given_b).all() and given_a.sum() == 6


def test_trajectory_is_told_to_the_model_and_written_beside_the_grid(pipeline, capsys, tmp_path):
    assert sample("--video", "long.mp4", "--trajectory", "dolly:0.5", "--out", "out/a") == 0
    assert "cameras: dolly:0.5" in capsys.readouterr().out
    distances = np.linalg.norm(pipeline.calls[0][2]["conditions"]["cameras"].c2w[:, :3, 3], axis=1)
    np.testing.assert_allclose(distances, [1, 0.75, 0.5], atol=1e-6)
    assert (
        sample("--image", "orbit.mp4", "--cameras", "out/a/transforms.json", "--out", "out/b", "--frames", "0:1") == 0
    )
    told, again = (call[2]["conditions"]["cameras"] for call in pipeline.calls)
    np.testing.assert_allclose(again.c2w, told.c2w, atol=1e-6)
    assert told.focus == again.focus == 1  # else a dolly's own length would be the unit
    sources = [json.loads((tmp_path / f"out/{name}/transforms.json").read_text())["cameras"] for name in "ab"]
    assert sources == ["asked for by --trajectory dolly:0.5, not measured", "known"]


def test_a_test_grid_brings_its_cameras_unless_told_not_to(pipeline, tmp_path):
    cameras = trajectory("arc", SHAPE[0], SHAPE[2:])
    truth = np.zeros((*SHAPE, 3), np.uint8)
    np.savez(tmp_path / "grids" / "wolf.npz", frames=truth, K=cameras.K, c2w=cameras.c2w)
    assert sample("--out", "out/a") == 0 and sample("--cameras", "none", "--out", "out/b") == 0
    np.testing.assert_array_equal(pipeline.calls[0][2]["conditions"]["cameras"].c2w, cameras.c2w)
    assert pipeline.calls[1][2]["conditions"] == {}


def test_a_checkpoint_without_cameras_refuses_those_asked_for(pipeline, capsys, monkeypatch):
    blind = replace(SPEC, model=replace(BASE, conditions=(Hints(),)))
    monkeypatch.setattr(checkpoints, "describe_checkpoint", lambda name: blind)
    assert "--trajectory: the checkpoint nano takes no cameras" in fails(capsys, "--trajectory", "orbit")
    assert sample("--out", "out/a") == 0 and pipeline.calls[0][2]["conditions"] == {}


@pytest.fixture
def with_text(pipeline, monkeypatch):
    """The checkpoint takes text; two.safetensors holds two prompts, one.safetensors one, wide.safetensors wider features."""
    spec = replace(SPEC, model=replace(BASE, conditions=(Text(width=4),)))
    monkeypatch.setattr(checkpoints, "describe_checkpoint", lambda name: spec)
    for name, prompts, width in (("two", ["a dog", "two cats"], 4), ("one", ["a dog"], 4), ("wide", ["a dog"], 8)):
        features = [np.full((i + 1, width), i + 1, np.float32) for i in range(2 + len(prompts))]
        write_texts(Path(f"{name}.safetensors"), prompts, "blurred", [len(each) for each in features], width, features)
    return pipeline


def told_text(pipeline, call=-1):
    """(number, tokens that are not zero) of the prompt and of its negative, as the pipeline is told."""
    prompt = pipeline.calls[call][2]["conditions"]["text"]
    assert prompt.features.shape == prompt.negative.shape == (512, 4)
    return tuple((part.max(), int(part.any(axis=1).sum())) for part in prompt)


def test_a_prompt_of_a_file_reaches_the_pipeline_with_the_negative_one_and_metadata(with_text, capsys, tmp_path):
    assert sample("--text", "two.safetensors", "--prompt", "two  cats", "--out", "out/a") == 0
    assert told_text(with_text) == ((4, 4), (2, 2))
    assert "given, prompt: two cats\n" in capsys.readouterr().out
    assert sample("--text", "one.safetensors", "--out", "out/b") == 0
    assert told_text(with_text) == ((3, 3), (2, 2))
    told = [json.loads((tmp_path / f"out/{name}/metadata.json").read_text())["told"] for name in "ab"]
    assert told == [{"text": "prompt: two cats"}, {"text": "prompt: a dog"}]


def test_a_prompt_is_embedded_by_an_encoder_that_is_closed_before_the_model_loads(with_text, monkeypatch):
    closed, embedded = [], []

    @contextlib.contextmanager
    def opened(folder, dtype="float32"):
        yield SimpleNamespace(
            width=4,
            config_hash="",
            tokens=lambda prompts: embedded.extend(prompts) or [[1] * (len(each.split()) + 1) for each in prompts],
            features=lambda tokens: [np.ones((len(each), 4), np.float32) for each in tokens],
        )
        closed.append(folder)

    def load(name, mesh, vae):
        assert closed == ["wan"]
        return with_text

    monkeypatch.setattr(encoder, "open_encoder", opened)
    monkeypatch.setattr(pipelines, "load_pipeline", load)
    assert sample("--prompt", "a red dog", "--encoder", "wan", "--out", "out/a") == 0
    assert told_text(with_text) == ((1, 4), (1, 2)) and embedded == ["", encoder.NEGATIVE, "a red dog"]


def test_guidance_goes_over_the_text_alone_where_that_is_said(with_text):
    words = ("--text", "one.safetensors", "--guidance-scale", "5", "--out")
    assert sample(*words, "out/a", "--guide", "text") == 0 and sample(*words, "out/b") == 0
    assert [call[2]["guide"] for call in with_text.calls] == [("text",), None]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "the checkpoint takes text: give --text FILE, which fourreal embed-text"),
        (["--prompt", "a dog"], "the checkpoint takes text: give --text FILE"),
        (["--encoder", "wan"], "or --prompt and --encoder"),
        (["--text", "one.safetensors", "--encoder", "wan"], "--text and --encoder both give the prompt's features"),
        (["--text", "none.safetensors"], "there is no file none.safetensors"),
        (["--text", "long.mp4"], "long.mp4 is broken"),
        (["--text", "two.safetensors"], 'the file holds 2 prompts, "a dog", "two cats": name one'),
        (
            ["--text", "two.safetensors", "--prompt", "a cat"],
            'no prompt "a cat"; the nearest of its 2: "two cats", "a dog"',
        ),
        (["--text", "wide.safetensors"], "the text's features are 8 wide, the checkpoint takes 4"),
        (["--prompt", "a dog", "--encoder", "wan"], "there is no wan/text_encoder/config.json"),
        (
            ["--prompt", "a dog", "--encoder", str(TINY_UMT5)],
            "pip install -e '.[text]' brings it, here or where you run",
        ),
        (["--text", "one.safetensors", "--guide", "text"], "--guide names what --guidance-scale goes over: give both"),
        (["--guidance-scale", "2", "--guide", "tex"], "guidance by tex: this checkpoint takes no such thing"),
    ],
)
def test_text_that_is_none_is_one_line_before_any_weights_load(with_text, capsys, monkeypatch, argv, words):
    monkeypatch.setattr(pipelines, "load_pipeline", lambda name, mesh, vae: pytest.fail("loaded"))
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert words in fails(capsys, *argv)


@pytest.mark.parametrize("option", ["--text", "--prompt", "--encoder"])
def test_a_checkpoint_without_text_refuses_the_text_s_options(pipeline, capsys, option):
    assert f"{option}: the checkpoint nano takes no text; train one with" in fails(capsys, option, "x")


@pytest.mark.parametrize(("text", "method"), [("heun", Heun()), ("unipc", UniPC())])
def test_method_is_a_sampler_by_its_name(pipeline, tmp_path, text, method):
    assert sample("--method", text, "--out", "out/a") == 0
    assert pipeline.calls[0][2] == PLAIN | {"method": method}
    assert json.loads((tmp_path / "out/a/metadata.json").read_text())["options"]["method"] == text


def test_size_and_numbers_of_views_and_times_are_the_callers(pipeline, capsys, tmp_path):
    argv = "--image orbit.mp4 --frames 0:1 --size 8 24 --num-views 2 --num-times 5 --trajectory orbit --out out/a"
    assert sample(*argv.split()) == 0
    frames, given, options = pipeline.calls[0]
    assert frames.shape == (2, 5, 8, 24, 3) and given.sum() == 1
    K = options["conditions"]["cameras"].K
    np.testing.assert_allclose(K[:, :2, 2], [[12, 4]] * 2)  # the optical axis meets the middle of such a frame
    assert "2 views x 5 times at 8x24" in capsys.readouterr().out
    assert np.load(tmp_path / "out/a/grid.npz")["frames"].shape == frames.shape


def test_every_seed_of_a_range_is_sampled_into_a_folder_of_its_own(pipeline, tmp_path):
    assert sample("--seeds", "2:5", "--out", "out/a") == 0
    assert [call[2] for call in pipeline.calls] == [PLAIN | {"seed": seed} for seed in (2, 3, 4)]
    folders = sorted((tmp_path / "out/a").iterdir())
    assert [folder.name for folder in folders] == ["seed2", "seed3", "seed4"]
    told = [json.loads((folder / "metadata.json").read_text())["options"]["seed"] for folder in folders]
    assert told == [2, 3, 4] and all((folder / "index.html").is_file() for folder in folders)


def test_seeds_without_a_folder_named_are_named_by_their_number(pipeline, tmp_path):
    assert sample("--seeds", "0:2") == 0
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["wolf-nano-seed0", "wolf-nano-seed1"]


def test_folder_of_one_seed_that_exists_is_refused_before_any_is_sampled(pipeline, capsys):
    assert sample("--seed", "3", "--out", "out/a/seed3") == 0
    capsys.readouterr()
    assert "add --overwrite" in fails(capsys, "--seeds", "2:5", "--out", "out/a")
    assert len(pipeline.calls) == 1


def test_views_folder_is_said_and_sampled(pipeline, tmp_path, capsys):
    (tmp_path / "cams").mkdir()
    for name in ("cam0", "cam1"):
        write_video(tmp_path / "cams" / f"{name}.mp4", np.zeros((4, 16, 16, 3), np.uint8), fps=8)
    assert sample("--views", "cams", "--out", "out/a") == 0
    assert "cams: cam0.mp4 -> view 0, cam1.mp4 -> view 1" in capsys.readouterr().out
    assert pipeline.calls[0][1].sum() == 8


def test_names_of_files_need_not_be_utf8(pipeline, tmp_path):
    video, out = "long\udcff.mp4", "out/\udcfe"
    (tmp_path / "long.mp4").rename(tmp_path / video)
    assert sample("--video", video, "--out", out) == 0
    assert json.loads((tmp_path / out / "metadata.json").read_text())["options"]["video"] == video


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--video", "nowhere.mp4"], "nowhere.mp4: there is no such file"),
        (["--given", "long.mp4"], "it does not say where"),
        (["--given", "long.mp4@v=3"], "no view 3; the grid has views 0 to 2"),
        (["--video", "orbit.mp4"], "orbit.mp4: 3 frames, but 4 are needed"),
        (["--video", "long.mp4", "--image", "orbit.mp4"], "given twice, by long.mp4@v=0 and by orbit.mp4@v=0,t=0"),
        (["--video", "long.mp4", "--frames", "x"], "expected a:b or a:b:step"),
        (["--grid", "wolff"], "did you mean wolf?"),
        (["--grid", "wolf", "--video", "long.mp4"], "--grid brings its own given cells"),
        (["--steps", "0"], "1 to 1000 steps"),
        (["--given", "long.mp4@v=0", "--given", "long.mp4@v=1", "--given", "long.mp4@v=2"], "nothing to sample"),
        (["--trajectory", "orbt:60"], "did you mean orbit?"),
        (["--trajectory", "orbit:far"], "'far' is no finite number"),
        (["--trajectory", "dolly:0.95"], "ends in the subject"),
        (["--trajectory", "rise:80"], "between -85 and 85 degrees"),
        (["--trajectory", "orbit", "--cameras", "x.json"], "give one"),
        (["--cameras", "x.json"], "x.json: there is no such file"),
        (["--cameras", "long.mp4"], "not JSON"),
        (["--out", "grids", "--overwrite"], "was not written by fourreal"),
        (["--size", "16", "18"], "multiples of 4"),
        (["--size", "0", "16"], "at least 1"),
        (["--num-views", "0"], "views 0"),
        (["--num-times", "-1"], "times -1"),
        (["--num-views", "4"], "no bundled test grid has 4 views"),
        (["--seeds", "3:1"], "expected A:B"),
        (["--seeds", "3"], "expected A:B"),
        (["--seeds", "0:4294967296"], "at most 1000"),
        (["--seeds", "4294967295:4294967297"], "2^32 - 1"),
        (["--seeds", "0:2", "--seed", "1"], "give one"),
        (["--method", "hean"], "did you mean 'heun'"),
    ],
)
def test_bad_input_is_one_line_before_any_weights_load(pipeline, capsys, monkeypatch, argv, words):
    monkeypatch.setattr(pipelines, "load_pipeline", lambda name, mesh, vae: pytest.fail("loaded"))
    assert words in fails(capsys, *argv)


def test_an_existing_folder_is_refused_before_sampling_unless_overwrite(pipeline, capsys):
    assert sample("--out", "out/a") == 0
    capsys.readouterr()
    assert "add --overwrite" in fails(capsys, "--out", "out/a")
    assert len(pipeline.calls) == 1
    assert sample("--out", "out/a", "--overwrite") == 0


def test_help_groups_the_options_and_reads_no_pictures():
    code = (
        "import sys; from fourreal.cli import main\n"
        "try: main(['sample', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'av', 'PIL', 'tensorflow', 'grain'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f"{group} options") for group in ("inputs", "sampling", "output", "mesh", "cameras")]
    options = [done.stdout.index(name) for name in ("--video", "--guidance-scale", "--overwrite", "--mesh.", "--fov")]
    assert sorted(places + options) == [at for pair in zip(places, options, strict=True) for at in pair]


@pytest.mark.slow
def test_a_wide_grid_of_other_numbers_is_sampled_from_the_command_line(tmp_path, monkeypatch):
    """A video and an orbit of 96 x 64 pixels with the bundled model, which was trained on 64 x 64."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    video, orbit = (rng.integers(0, 256, (count, 64, 96, 3), np.uint8) for count in (2, 3))
    orbit[0] = video[0]
    for name, frames in (("video", video), ("orbit", orbit)):
        np.savez(f"{name}.npz", frames=frames)
    argv = "--video video.npz --orbit orbit.npz --size 64 96 --num-views 3 --num-times 2 --steps 1 --trajectory orbit"
    assert sample(*argv.split(), "--seeds", "0:2", "--out", "out") == 0
    one, other = (np.load(f"out/seed{seed}/grid.npz")["frames"] for seed in (0, 1))
    assert one.shape == (3, 2, 64, 96, 3)
    for grid in (one, other):
        np.testing.assert_array_equal(grid[0], video)
        np.testing.assert_array_equal(grid[:, 0], orbit)
    assert (one[1:, 1:] != other[1:, 1:]).any()


@pytest.mark.parametrize("kinds", [(Prope,), (Cameras, Prope)])
def test_options_of_cameras_are_told_to_every_condition_that_takes_them(pipeline, capsys, monkeypatch, tmp_path, kinds):
    spec = replace(SPEC, model=replace(BASE, width=16, conditions=tuple(kind() for kind in kinds)))
    monkeypatch.setattr(checkpoints, "describe_checkpoint", lambda name: spec)
    assert sample("--video", "long.mp4", "--trajectory", "dolly:0.5", "--out", "out/a") == 0
    assert capsys.readouterr().out.count("cameras: dolly:0.5") == 1
    assert (
        sample("--image", "orbit.mp4", "--cameras", "out/a/transforms.json", "--frames", "0:1", "--out", "out/b") == 0
    )
    for _, _, options in pipeline.calls:
        assert set(options["conditions"]) == {kind.kind for kind in kinds}
        for told in options["conditions"].values():
            distances = np.linalg.norm(told.c2w[:, :3, 3], axis=1)
            np.testing.assert_allclose(distances, [1, 0.75, 0.5], atol=1e-6)
    stored = [json.loads((tmp_path / f"out/{name}/transforms.json").read_text())["cameras"] for name in "ab"]
    assert stored == ["asked for by --trajectory dolly:0.5, not measured", "known"]


@pytest.mark.slow
def test_cameras_of_the_command_line_reach_the_model(tmp_path, monkeypatch):
    """The bundled model, one picture: what it makes of the other views depends on where they are said to stand."""
    monkeypatch.chdir(tmp_path)
    frames = np.load(sorted(inputs.GRIDS.glob("*.npz"))[0])["frames"]
    Image.fromarray(frames[0, 0]).save("photo.png")
    grids = {}
    for name, options in (("near", "orbit:10"), ("far", "orbit:60"), ("same", "orbit:60"), ("none", None)):
        told = () if options is None else ("--trajectory", options)
        assert sample("--image", "photo.png", "--num-times", "1", "--steps", "1", "--out", name, *told) == 0
        grids[name] = np.load(tmp_path / name / "grid.npz")["frames"]
    np.testing.assert_array_equal(grids["far"], grids["same"])
    assert (grids["far"][1:] != grids["near"][1:]).any() and (grids["far"][1:] != grids["none"][1:]).any()
