"""Data sets of grids: written, read back, and never left half-written."""

import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("panda3d")
pytest.importorskip("tensorflow_datasets")

from fourreal.data import grid_stream
from fourreal.data.builders.grids import open_split, write_grids
from fourreal.data.grid_stream import GridRequest, GridStream
from fourreal.data.render_command import Render
from fourreal.data.scenes import Scene

SHAPE = (2, 3, 32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "grids"
    Render(path, train=3, validation=1, test=2, views=2, times=3, size=32, workers=1).run()
    return path


def test_a_data_set_reads_back_what_was_rendered(dataset):
    source = open_split(dataset, "train")
    assert len(source) == 3
    for wanted in GridStream(GridRequest("train", *SHAPE, seed=0), 3):
        got = source[int(wanted["index"])]
        assert set(got) == {"frames", "depth", "subject", "K", "c2w", "index", "scene"}
        for key in ("frames", "depth", "subject", "K", "c2w", "index"):
            assert got[key].dtype == wanted[key].dtype and np.array_equal(got[key], wanted[key]), key
        assert Scene.from_json(got["scene"]).split == "train"


def test_every_split_has_its_count_and_its_own_units(dataset):
    units = {}
    for split, count in (("train", 3), ("validation", 1), ("test", 2)):
        source = open_split(dataset, split)
        assert [int(source[i]["index"]) for i in range(len(source))] == list(range(count))
        scenes = [json.loads(source[i]["scene"]) for i in range(count)]
        units[split] = {s["unit"] for scene in scenes for s in scene["subjects"] if s["file"]}
    assert not units["train"] & units["test"]


def test_a_source_travels_to_another_process(dataset):
    source = pickle.loads(pickle.dumps(open_split(dataset, "test")))
    assert np.array_equal(source[1]["frames"], open_split(dataset, "test")[1]["frames"])


def test_reading_and_writing_never_import_tensorflow(dataset):
    code = (
        "import sys\nfrom fourreal.data.builders.grids import open_split\n"
        f"open_split({str(dataset)!r}, 'train')[0]\nassert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_two_processes_render_what_one_does():
    request = GridRequest("test", *SHAPE, seed=5)
    alone, together = (list(GridStream(request, 5, workers)) for workers in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert one["scene"] == other["scene"] and np.array_equal(one["frames"], other["frames"])


def test_flawed_grids_are_counted_and_the_next_candidates_taken(monkeypatch):
    request = GridRequest("train", *SHAPE, seed=0)
    plain = list(GridStream(request, 4))
    good = [plain[1]["frames"].tobytes(), plain[3]["frames"].tobytes()]
    monkeypatch.setattr(grid_stream, "flaw", lambda grid: None if grid["frames"].tobytes() in good else "still")
    stream = GridStream(request, 2)
    assert [grid["scene"] for grid in stream] == [plain[1]["scene"], plain[3]["scene"]]
    candidates = Scene.from_json(plain[3]["scene"]).index + 1
    assert dict(stream.rejected) == {"still": candidates - 2}


def flawed(**change) -> str | None:
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(60, 90, (2, 1, 16, 16, 3)), 3, 1).astype(np.uint8)
    frames[:, 1, 4:10, 4:10] += 50
    subject = np.zeros((2, 3, 16, 16), np.uint8)
    subject[..., 4:10, 4:10] = 1
    return grid_stream.flaw({"frames": frames, "subject": subject} | change)


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


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path):
    def broken():
        yield from GridStream(GridRequest("train", *SHAPE, seed=0), 1)
        raise RuntimeError("the machine stopped")

    with pytest.raises(RuntimeError, match="the machine stopped"):
        write_grids(tmp_path / "grids", {"train": broken()}, SHAPE, {})
    assert list(tmp_path.iterdir()) == []


def test_missing_data_sets_and_splits_are_named(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="fourreal data render --out"):
        open_split(tmp_path / "none", "train")
    with pytest.raises(ValueError, match="no split 'dev': it has test, train, validation"):
        open_split(dataset, "dev")


def test_an_existing_folder_is_kept_unless_told_to_replace_it(tmp_path):
    small = {"train": 1, "validation": 0, "test": 0, "views": 1, "times": 2, "size": 16, "workers": 1}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.txt").write_text("precious")
    for overwrite, said in ((False, "--overwrite"), (True, "is no data set")):
        with pytest.raises(FileExistsError, match=said):
            Render(tmp_path / "photos", **small, overwrite=overwrite).run()
    assert (tmp_path / "photos/mine.txt").exists()
    Render(tmp_path / "grids", **small).run()
    with pytest.raises(FileExistsError, match="--overwrite"):
        Render(tmp_path / "grids", **small).run()
    Render(tmp_path / "grids", **small | {"train": 2}, overwrite=True).run()
    assert len(open_split(tmp_path / "grids", "train")) == 2


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": 60}, "power of two"),
        ({"times": 1}, "cannot move"),
        ({"workers": 0}, "1 to 256 workers"),
        ({"test": -1}, "no grids"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_rendered(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        Render(tmp_path / "grids", **options).run()
    assert list(tmp_path.iterdir()) == []


def test_bundled_examples_are_what_their_command_renders():
    from fourreal.data.example_grids import FOLDER, SCENES, render_example

    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == sorted(SCENES)
    for name in SCENES:
        assert (FOLDER / f"{name}.npz").stat().st_size < 250_000
        with np.load(FOLDER / f"{name}.npz") as stored:
            example = render_example(name)
            assert set(stored) == set(example)
            # another machine's arithmetic may round a level differently
            assert np.abs(stored["frames"].astype(int) - example["frames"]).max() <= 2
            assert str(stored["scene"]) == str(example["scene"])


def test_rendering_processes_leave_with_the_one_that_is_killed(tmp_path):
    script = tmp_path / "render.py"
    script.write_text(
        "import multiprocessing\n"
        "from fourreal.data.grid_stream import GridRequest, GridStream\n"
        "if __name__ == '__main__':\n"
        "    for grid in GridStream(GridRequest('train', 2, 2, 16, 0), 10**6, 2):\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2 and not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
