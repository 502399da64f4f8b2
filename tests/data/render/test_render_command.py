"""`fourreal data render`: rendered data sets, the same for any number of processes, and what is left out of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("panda3d")
pytest.importorskip("tensorflow_datasets")

from fourreal.data.render import candidates
from fourreal.data.render.candidates import Candidates
from fourreal.data.render.command import Render
from fourreal.data.render.scenes import Scene
from fourreal.data.sources.records import Records
from fourreal.host.folders import partial_folder
from fourreal.scene import Cut

ROOT = Path(__file__).parents[3]
SHAPE = (2, 3, 32)
SMALL = {"train": 1, "validation": 0, "test": 0, "views": 1, "times": 2, "size": 16, "workers": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "grids"
    Render(path, train=6, validation=1, test=2, views=2, times=3, size=32, workers=1).run()
    return path


def grids(path, split: str = "train") -> list:
    """All scenes of a split."""
    scenes = Records(str(path)).open(split)
    shapes = [scenes.shape(i) for i in range(len(scenes))]
    return [scenes.read(i, Cut(np.arange(v), np.arange(t))) for i, (v, t, *_) in enumerate(shapes)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_data_set_holds_the_good_candidates_in_order(dataset):
    make = Candidates("train", *SHAPE, seed=0).make
    wanted = [made for made in map(make, range(20)) if not isinstance(made, str)][:6]
    for made, got in zip(wanted, grids(dataset), strict=True):
        assert got.frames.dtype == np.uint8 and np.array_equal(got.frames, made.frames)
        assert np.array_equal(got.cameras.K, made.cameras.K) and np.array_equal(got.cameras.c2w, made.cameras.c2w)
        for name in ("depth", "subject"):
            assert got.more[name].dtype == made.more[name].dtype and np.array_equal(got.more[name], made.more[name])
        assert got.more["scene"] == made.more["scene"] and Scene.from_json(got.more["scene"]).split == "train"


def test_every_split_has_its_count_and_its_own_units(dataset):
    units = {}
    for split, count in (("train", 6), ("validation", 1), ("test", 2)):
        found = grids(dataset, split)
        assert [grid.index for grid in found] == list(range(count))
        scenes = [json.loads(grid.more["scene"]) for grid in found]
        units[split] = {s["unit"] for scene in scenes for s in scene["subjects"] if s["file"]}
        opened = Records(str(dataset)).open(split)
        assert set().union(*map(opened.units, range(count))) >= units[split]
    assert not units["train"] & units["test"]


def test_two_processes_render_and_write_what_one_does(dataset, tmp_path):
    Render(tmp_path / "grids", train=6, validation=1, test=2, views=2, times=3, size=32, workers=2).run()
    assert contents(tmp_path / "grids") == contents(dataset)


def test_wide_frames_are_rendered(tmp_path):
    Render(tmp_path / "grids", **SMALL | {"size": (16, 32)}).run()
    (grid,) = grids(tmp_path / "grids")
    assert grid.frames.shape == (1, 2, 16, 32, 3) and Records(str(tmp_path / "grids")).open("train").shape(0)[2:] == (
        16,
        32,
    )


def test_rendered_cameras_sweep_what_is_asked_for_and_the_data_set_says_it(tmp_path, dataset):
    Render(tmp_path / "grids", **SMALL | {"train": 12, "views": 8, "sweep": (15, 60)}).run()
    for grid in grids(tmp_path / "grids"):
        forward = grid.cameras.c2w[:, :2, 2].astype(np.float64)
        heading = np.arctan2(forward[:, 1], forward[:, 0])
        steps = np.degrees((np.diff(heading) + np.pi) % (2 * np.pi) - np.pi)
        assert 15 - 1e-2 < abs(steps.sum()) < 60 + 1e-2
        assert abs(steps).min() > 2 and abs(steps).max() < 9  # between neighbours
    ours, usual = (json.loads((folder / "metadata.json").read_text()) for folder in (tmp_path / "grids", dataset))
    assert ours["sweep"] == [15, 60] and "sweep" not in usual  # as it was before there was the option


def test_rendering_does_not_go_on_with_another_sweep(tmp_path, monkeypatch):
    options = SMALL | {"train": 5, "times": 3}
    render_scene, left = candidates.render_scene, iter(range(4))

    def killed(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return render_scene(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(candidates, "render_scene", killed)
        with pytest.raises(KeyboardInterrupt):
            Render(tmp_path / "grids", **options, sweep=(15, 60)).run()
    for sweep in (None, (15, 61)):
        with pytest.raises(ValueError, match=r"sweep was \[15, 60\]") as error:
            Render(tmp_path / "grids", **options, sweep=sweep).run()
        assert "\n" not in str(error.value)
    Render(tmp_path / "grids", **options, sweep=(15, 60)).run()
    Render(tmp_path / "whole", **options, sweep=(15, 60)).run()
    assert contents(tmp_path / "grids") == contents(tmp_path / "whole")


@pytest.mark.parametrize("words", ["16", "16 32"])
def test_the_command_line_takes_a_side_or_height_and_width(words, tmp_path):
    from fourreal.options import read_options

    options = read_options(Render, ["--out", str(tmp_path), "--size", *words.split()], "fourreal data render")
    assert candidates.sides(options.size) == ((16, 16) if words == "16" else (16, 32))


def test_the_command_line_takes_the_lowest_and_the_highest_sweep(tmp_path):
    from fourreal.options import read_options

    for words, sweep in (([], None), (["--sweep", "15", "60.5"], (15, 60.5))):
        assert read_options(Render, ["--out", str(tmp_path), *words], "fourreal data render").sweep == sweep


def test_flawed_grids_are_counted_and_the_next_candidates_taken(tmp_path, monkeypatch, capsys):
    made = [Candidates("train", *SHAPE, seed=0).make(i) for i in range(8)]
    good = [grid for grid in made if not isinstance(grid, str)][1:4:2]
    frames = [grid.frames.tobytes() for grid in good]
    monkeypatch.setattr(candidates, "flaw", lambda grid: None if grid["frames"].tobytes() in frames else "still")
    Render(tmp_path / "grids", train=2, validation=0, test=0, views=2, times=3, size=32, workers=1).run()
    assert [grid.more["scene"] for grid in grids(tmp_path / "grids")] == [grid.more["scene"] for grid in good]
    assert f"train: 2 grids; rejected: {good[-1].index + 1 - 2} still" in capsys.readouterr().out


def flawed(**change) -> str | None:
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(60, 90, (2, 1, 16, 16, 3)), 3, 1).astype(np.uint8)
    frames[:, 1, 4:10, 4:10] += 50
    subject = np.zeros((2, 3, 16, 16), np.uint8)
    subject[..., 4:10, 4:10] = 1
    return candidates.flaw({"frames": frames, "subject": subject} | change)


def test_each_flaw_is_told_by_its_name():
    assert flawed() is None
    still = np.full((2, 3, 16, 16, 3), 80, np.uint8)
    still[:, 1] += 12  # a change of 12 levels is not motion, 13 is
    assert flawed(frames=still) == "still"
    assert flawed(frames=np.where(still > 80, still + 1, still).astype(np.uint8)) is None
    tiny, edge = np.zeros((2, 3, 16, 16), np.uint8), np.zeros((2, 3, 16, 16), np.uint8)
    tiny[..., 5:8, 5:8] = 1
    edge[..., 4:10, 0:6] = 1
    assert flawed(subject=tiny) == "small" and flawed(subject=edge) == "cut"
    dark = np.zeros((2, 3, 16, 16, 3), np.uint8)
    dark[:, 1, 4:10, 4:10] = 15
    assert flawed(frames=dark) == "dark"


def test_an_existing_folder_is_kept_unless_told_to_replace_it(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.txt").write_text("precious")
    for overwrite, said in ((False, "--overwrite"), (True, "is no data set")):
        with pytest.raises(FileExistsError, match=said):
            Render(tmp_path / "photos", **SMALL, overwrite=overwrite).run()
    assert (tmp_path / "photos/mine.txt").exists()
    Render(tmp_path / "grids", **SMALL).run()
    with pytest.raises(FileExistsError, match="--overwrite"):
        Render(tmp_path / "grids", **SMALL).run()
    Render(tmp_path / "grids", **SMALL | {"train": 2}, overwrite=True).run()
    assert len(grids(tmp_path / "grids")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grids", "photos"]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": 60}, "power of two"),
        ({"size": (64, 60)}, "60 pixels.*power of two"),
        ({"times": 1}, "cannot move"),
        ({"workers": 0}, "1 to 256 workers"),
        ({"test": -1}, "no grids"),
        ({"sweep": (60, 15)}, "--sweep 60 15: give the lowest and the highest, from 0 to 360 degrees"),
        ({"sweep": (-5, 15)}, "from 0 to 360"),
        ({"sweep": (5, 361)}, "from 0 to 360"),
        ({"sweep": (float("nan"), 15)}, "from 0 to 360"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_rendered(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        Render(tmp_path / "grids", **options).run()
    assert list(tmp_path.iterdir()) == []


def test_bundled_examples_are_what_their_command_renders():
    from fourreal.data.render.example_grids import EXAMPLES, FOLDER, render_example

    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == sorted(EXAMPLES)
    for name, example in EXAMPLES.items():
        assert (FOLDER / f"{name}.npz").stat().st_size < (250_000 if example.size == 64 else 2_500_000)
        with np.load(FOLDER / f"{name}.npz") as stored:
            rendered = render_example(name)
            assert set(stored) == set(rendered)
            # another machine's arithmetic may round a level differently
            assert np.abs(stored["frames"].astype(int) - rendered["frames"]).max() <= 2
            assert str(stored["scene"]) == str(rendered["scene"])


@pytest.mark.slow
def test_an_interrupted_rendering_says_that_it_goes_on_and_does(tmp_path):
    options = (
        f"--out {tmp_path / 'grids'} --workers 2 --validation 0 --test 0 --views 2 --times 2 --size 16 --train 150"
    )
    command = [sys.executable, "-m", "fourreal", "data", "render", *options.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    parts = partial_folder(tmp_path / "grids") / "parts"
    deadline = time.monotonic() + 180
    while not list(parts.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130 and err.splitlines()[-1].endswith(": interrupted"), err[-3000:]
    assert re.search("keeps what is finished: the same command goes on", out)
    assert list(parts.glob("*.json")) and not (tmp_path / "grids").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"train: 150 grids; rejected: .*\n.*grids: [\d.]+ grids/s, \d+ MB, \d+ s", again.stdout)
    Render(tmp_path / "alone", train=150, validation=0, test=0, views=2, times=2, size=16, workers=1).run()
    assert contents(tmp_path / "grids") == contents(tmp_path / "alone")
