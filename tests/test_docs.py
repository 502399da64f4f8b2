"""What README and docs/ show is run as it stands: their python snippets, command lines and links."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fourreal import cli
from fourreal.checkpoints.upgrade import stored
from fourreal.diffusion.samplers import Euler, integrate, noise_levels
from fourreal.models.fusions.two_streams import Streams
from fourreal.serialize import to_json
from fourreal.training.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PLACEHOLDERS = {"CONFIG": "nano", "...": "nano", "N": "2"}
RUNS = ("nano", "mine", "captured")  # that commands name


def snippets(page: str) -> list[str]:
    """The python snippets of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands() -> list[str]:
    """Every command line of a code block, or in backticks, as the words after `fourreal`."""
    found = []
    for page in PAGES:
        text = re.sub(r"```python\n.*?```", "", page.read_text(), flags=re.DOTALL)
        for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
            found += block.splitlines()
        found += [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    scripts = (
        r"^(?:.* )?(?:\.venv/bin/)?(?:fourreal|(?:\.venv/bin/)?python (train|sample)\.py|(sample)\.py) +([\w/].*|--.*)$"
    )
    matches = [re.match(scripts, line.split("#")[0].strip()) for line in found]
    lines = [" ".join(filter(None, match.groups())) for match in matches if match]
    lines += [f"train nano {line}" for line in found if re.match(r"--(optim|grid|model|trains|mesh|data)\b", line)]
    return [line for line in dict.fromkeys(lines) if not line.startswith("VERB")]


@pytest.fixture
def additions(tmp_path, monkeypatch):
    """The page's own module, as a file that can be imported."""
    (tmp_path / "additions.py").write_text("\n\n".join(snippets("docs/extending.md")[:-2]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import additions

    yield additions
    sys.modules.pop("additions")


def test_the_readme_s_snippet_of_the_pipeline_returns_a_grid():
    names = {}
    exec(snippets("README.md")[0], names)
    assert names["grid"].shape == (4, 4, 128, 128, 3) and names["grid"].dtype == np.uint8
    np.testing.assert_array_equal(names["grid"][names["given"]], names["frames"][names["given"]])


def test_the_readme_s_snippet_of_the_modules_makes_a_model():
    names = {}
    exec(snippets("README.md")[1], names)
    x = np.zeros((1, 2, 3, 16, 16, 3), np.float32)
    assert jax.eval_shape(names["model"], x, np.ones(1, np.float32)).shape == x.shape


@pytest.mark.slow
def test_the_snippets_of_modules_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:2])  # so that the mesh cuts parameters
    names, seen = {}, []
    for snippet in snippets("docs/modules.md"):
        exec(snippet, names)
        seen.append({name: names.get(name) for name in ("params", "value", "x0", "state")})
    model, loss, samples, cameras, mesh, heads, weights = seen
    shape, given = names["pixels"].shape, names["given"]
    assert names["out"].shape == shape and model["params"] is None
    assert np.isfinite(loss["value"]) and np.isfinite(mesh["value"])
    np.testing.assert_allclose(samples["x0"][given], (names["pixels"] / 127.5 - 1)[given], atol=1e-6)
    assert np.isfinite(cameras["x0"]).all() and cameras["x0"].shape == shape
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(mesh["params"]))
    heads, observed = names["heads"], names["seen"]
    assert heads["view"].shape == heads["time"].shape == shape and set(observed) == {"view", "time"}
    assert observed["view"].shape == (names["config"].depth,)
    whole, held = jax.device_get((mesh["params"], weights["params"]))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.astype(y.dtype), y), whole, held)
    assert names["pipe"].config.model == names["config"]


@pytest.mark.slow
def test_the_additions_of_extending_are_trained_saved_restored_and_sampled(additions):
    names = {}
    for snippet in snippets("docs/extending.md")[-2:]:
        exec(snippet, names)
    grid, given = names["grid"], names["given"]
    assert grid.shape == (2, 3, 8, 8, 3)
    np.testing.assert_array_equal(grid[given], names["frames"][given])
    assert names["pipe"].config.model.conditions == names["CONFIG"].model.conditions
    stored_condition = json.loads(Path("runs/captured/config.json").read_text())["model"]["conditions"][1]
    assert stored_condition == {"kind": "frame_rate", "drop": 0.1}


def test_the_sampler_of_extending_is_of_order_2(additions):
    """On Gaussian data of deviation 1/2: x0 = x (1 - sigma) / 4 / ((1 - sigma)^2 / 4 + sigma^2), which ends at noise / 2."""

    def denoise(x, sigma, row):
        return x * (1 - sigma) / 4 / ((1 - sigma) ** 2 / 4 + sigma**2)

    noise = np.full((1, 1, 1, 1), 1.0, np.float32)

    def error(sampler, steps):
        return abs(float(integrate(denoise, noise, noise_levels(steps), sampler).squeeze()) - 0.5)

    assert error(additions.Adams(), 64) < error(Euler(), 64) / 4


def test_the_codec_of_extending_loses_nothing(additions):
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 4, 6, 3), np.uint8)
    codec = additions.Unshuffle()
    latents = codec.encode({}, frames)
    assert latents.shape == (1, 2, *codec.shape(3, 4, 6))
    np.testing.assert_array_equal(codec.decode({}, latents), frames)


@pytest.mark.parametrize("share", [0, 1])
def test_the_fusion_of_extending_leaves_the_streams_at_share_0_and_exchanges_them_at_1(additions, share):
    rng = np.random.default_rng(0)
    streams = Streams(rng.normal(size=(1, 3, 2, 4, 6)), rng.normal(size=(1, 2, 3, 4, 6)))
    run = SimpleNamespace(send=lambda message, stream: np.swapaxes(message, 1, 2))
    view, time = additions.Gated().synchronize(SimpleNamespace(share=np.full((2, 6), share)), streams, run)
    expected = np.swapaxes(streams.time, 1, 2) if share else streams.view
    np.testing.assert_allclose(view, expected)
    np.testing.assert_allclose(time, np.swapaxes(streams.view, 1, 2) if share else streams.time)


@pytest.fixture
def workplace(tmp_path, monkeypatch, additions):
    """A folder with the configs, runs and modules that commands name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "captured.py").write_text(snippets("docs/extending.md")[-2])
    for name in RUNS:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = dataclasses.replace(load_config(ROOT / "configs" / "nano.py"), name=name)
        (folder / "config.json").write_text(json.dumps(stored(to_json(config))))


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line, workplace):
    words = [PLACEHOLDERS.get(word, word) for word in line.split()]
    verb = words.pop(0)
    if verb in ("data", "cameras", "convert"):
        verb += " " + words.pop(0)
    if words[-1] == "--help":
        with pytest.raises(SystemExit, match="0"):
            cli.parse(verb, words)
        return
    options = cli.parse(verb, words)
    owner = sys.modules[cli.VERBS[verb][0]]
    assert isinstance(options, getattr(owner, cli.VERBS[verb][1]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_and_folders_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert not [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]


def test_every_situation_has_a_test_that_exists():
    rows = re.findall(r"^\| .*\[.*\|$", (ROOT / "tests/situations.md").read_text(), re.MULTILINE)
    tests = re.findall(r"`(?:tests/)?([\w/]+\.py)::(test_\w+)", "\n".join(rows))
    assert len(tests) >= len(rows) // 2
    assert not [test for file, test in tests if f"def {test}(" not in (ROOT / "tests" / file).read_text()]
