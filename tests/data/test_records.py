"""Data sets of scenes: written by several processes, read back by the cut, resumed, never left half-written."""

import json
import os
import pickle
import runpy
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

import tensorflow_datasets as tfds

from fourreal.data import records
from fourreal.data.records import SHARD_BYTES, ShardWriter, tile_of
from fourreal.data.source import Source
from fourreal.data.sources.records import Records, RecordScenes, reduced
from fourreal.data.write import Split, write_scenes
from fourreal.errors import FileInTheWay, MissingFile, UserError
from fourreal.scene import Cameras, Cut, Scene

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures"
V, T, H, W = 5, 7, 4, 6
CELLS = np.arange(V * T).reshape(V, T)


def ranked(i: int, views: int = V, times: int = T, channels: int = 3) -> np.ndarray:
    """Frames in which every value says where it is and of which scene."""
    count = views * times * H * W * channels
    return ((np.arange(count) + 1009 * i) % 251).astype(np.uint8).reshape(views, times, H, W, channels)


def everything(i: int) -> Scene:
    """A scene with all that a data set can hold."""
    cells = np.arange(V * T * H * W).reshape(V, T, H, W)
    cameras = Cameras(
        np.arange(V * 9).reshape(V, 3, 3).astype(np.float32) + i,
        np.arange(V * 16).reshape(V, 4, 4).astype(np.float32) - i,
        np.float32(2.5 + i),
    )
    return Scene(
        ranked(i),
        i,
        exists=(CELLS + i) % 3 > 0,
        valid=(cells + i) % 5 > 0,
        cameras=cameras,
        text=np.arange(12).reshape(3, 4).astype(np.float32) + i,
        more={
            "depth": (cells / 4).astype(np.float16),
            "subject": ((cells + i) % 2).astype(np.uint8),
            "scene": json.dumps({"subjects": [{"unit": f"unit {i}"}, {"unit": "tree"}]}),
        },
    )


def whole(scenes, i: int) -> Scene:
    views, times = scenes.shape(i)[:2]
    return scenes.read(i, Cut(np.arange(views), np.arange(times)))


def alike(one, other) -> bool:
    """Whether two values are of the same kind and equal: arrays, names, dicts and tuples of them."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one is other is None or one == other


@pytest.fixture
def small_records(monkeypatch):
    """Records of at most 6 cells, so that small scenes take several."""
    cell = sum(
        array[0, 0].nbytes for array in (ranked(0), *(everything(0).more[name] for name in ("depth", "subject")))
    )
    monkeypatch.setattr(records, "RECORD_BYTES", 6 * cell)


def test_all_that_a_scene_has_reads_back(tmp_path):
    write_scenes(tmp_path / "set", {"train": Split(everything, 3, 2)})
    scenes = Source.from_text(str(tmp_path / "set")).open("train")
    assert len(scenes) == 3 and scenes.shape(1) == (V, T, H, W)
    for i in range(3):
        assert alike(whole(scenes, i), everything(i))
        assert scenes.units(i) == {f"unit {i}", "tree"}


def test_cuts_of_scenes_in_several_records_are_cuts_of_the_scenes(tmp_path, small_records):
    write_scenes(tmp_path / "set", {"train": Split(everything, 3, 2)})
    assert tile_of(V, T, records.RECORD_BYTES // 6) in ((3, 2), (2, 2))
    scenes = Records(str(tmp_path / "set")).open("train")
    assert all(alike(whole(scenes, i), everything(i)) for i in range(3))
    for views, times in (([4, 2, 0], [6, 0]), ([1], [0, 1, 2, 3, 4, 5, 6]), ([3, 3], [5, 2, 2])):
        got, stored, place = scenes.read(2, Cut(np.array(views), np.array(times))), everything(2), np.ix_(views, times)
        assert np.array_equal(got.frames, stored.frames[place]) and np.array_equal(got.valid, stored.valid[place])
        assert np.array_equal(got.exists, stored.exists[place]) and np.array_equal(
            got.cameras.K, stored.cameras.K[views]
        )
        assert np.array_equal(got.more["depth"], stored.more["depth"][place])


def test_a_cut_reads_only_the_records_that_hold_it(tmp_path, small_records, monkeypatch):
    write_scenes(tmp_path / "set", {"train": Split(everything, 2)})
    scenes = Records(str(tmp_path / "set")).open("train")
    read = []
    taken = type(scenes._records).__getitem__
    monkeypatch.setattr(type(scenes._records), "__getitem__", lambda self, n: read.append(n) or taken(self, n))
    assert scenes.shape(1) and scenes.units(1) and not read
    scenes.read(1, Cut(np.array([0]), np.array([0])))
    assert len(read) == 1
    whole(scenes, 1)
    assert len(read) > 5


def test_depth_and_subject_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    write_scenes(tmp_path / "set", {"train": Split(everything, 1)})
    scenes, read = RecordScenes(tmp_path / "set", "train"), []
    taken = type(scenes._records).__getitem__
    monkeypatch.setattr(type(scenes._records), "__getitem__", lambda self, n: read.append(n) or taken(self, n))
    for change in (lambda scene: scene, lambda scene: reduced(scene, 2)):
        read.clear()
        scene = change(whole(scenes, 0))
        assert read == [0] and set(scene.more) == {"depth", "subject", "scene"}
        assert scene.more["depth"] is scene.more["depth"] and scene.more["subject"].any() and read == [0, 1]


def test_records_and_shards_stay_within_their_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORD_BYTES", 20_000)
    monkeypatch.setattr(records, "SHARD_BYTES", 50_000)
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 32, 32, 3), np.uint8)
    write_scenes(tmp_path / "set", {"train": Split(lambda i: Scene(noise), 2, 2)})
    found = tfds.builder_from_directory(str(tmp_path / "set"))
    source = found.as_data_source(split="train", decoders=None)
    assert all(len(source.data_source[n]) < 22_000 for n in range(len(source)))
    lengths = found.info.splits["train"].shard_lengths
    assert sum(lengths) == len(source) > 2 * noise.nbytes / 20_000
    assert all(
        sum(len(source.data_source[n]) for n in range(end - count, end)) <= 50_000
        for count, end in zip(lengths, np.cumsum(lengths), strict=True)
    )
    assert np.array_equal(whole(Records(str(tmp_path / "set")).open("train"), 1).frames, noise)


def test_tiles_hold_at_most_4_mib_and_no_less_than_they_could():
    for views, times, cell in ((8, 8, 2**16), (2, 200, 2**16), (100, 3, 3 * 2**18), (1, 1, 2**22), (5, 3, 2**23)):
        high, wide = tile_of(views, times, cell)
        assert (high * wide * cell <= 2**22 or high * wide == 1) and (high, wide) <= (views, times)
        assert (high, wide) == (views, times) or 4.5 * high * wide * cell > 2**22
    assert SHARD_BYTES < 2**28
    with pytest.raises(UserError, match="does not fit into a record"):
        tile_of(1, 1, 2**26 + 1)


def test_float_latents_and_scenes_of_several_shapes_read_back(tmp_path):
    def make(i: int) -> Scene:
        return Scene(np.random.default_rng(i).normal(size=(1 + i, 3, 2, 5 + i, 16)).astype(np.float32))

    write_scenes(tmp_path / "set", {"train": Split(make, 3)})
    scenes = Records(str(tmp_path / "set")).open("train")
    assert [scenes.shape(i) for i in range(3)] == [(1, 3, 2, 5), (2, 3, 2, 6), (3, 3, 2, 7)]
    for i in range(3):
        got = whole(scenes, i)
        assert alike(got.frames, make(i).frames)
        assert got.exists is got.valid is got.cameras is got.text is None and scenes.units(i) == frozenset()


def test_reduced_scenes_are_means_over_boxes_that_their_cameras_see(tmp_path):
    block_reduce = pytest.importorskip("skimage.measure").block_reduce
    write_scenes(tmp_path / "set", {"train": Split(everything, 2, 2)})
    scenes = Records(str(tmp_path / "set"), reduce=2).open("train")
    full, small = whole(Records(str(tmp_path / "set")).open("train"), 1), whole(scenes, 1)
    assert scenes.shape(1) == (V, T, H // 2, W // 2) == small.frames.shape[:4]
    boxes = (1, 1, 2, 2)
    np.testing.assert_array_equal(small.frames, np.rint(block_reduce(full.frames, (*boxes, 1), np.mean)))
    np.testing.assert_array_equal(small.valid, block_reduce(full.valid, boxes, np.all))
    np.testing.assert_array_equal(small.more["subject"], block_reduce(full.more["subject"], boxes, np.mean) >= 0.5)
    np.testing.assert_array_equal(small.exists, full.exists)
    point = np.float32([0.3, -0.2, 2.0])
    there, here = (scene.cameras.K @ point for scene in (full, small))
    np.testing.assert_allclose(here[:, :2], there[:, :2] / 2, rtol=1e-6)  # pixel (0, 0) begins at 0
    np.testing.assert_allclose(here[:, 2], there[:, 2], rtol=1e-6)
    assert scenes.fingerprint != scenes.scenes.fingerprint and scenes.units(1) == {"unit 1", "tree"}
    assert Source.from_text(f"records:folder={tmp_path / 'set'},reduce=2") == Records(str(tmp_path / "set"), 2)
    with pytest.raises(UserError, match="frames of 4 x 6: give a reduce that divides both"):
        Records(str(tmp_path / "set"), reduce=4).open("train").shape(0)


def test_tfds_reads_the_data_set_by_itself(tmp_path):
    write_scenes(tmp_path / "set", {"train": Split(everything, 2)}, settings={"seed": 3}, licence="CC0")
    builder = tfds.builder_from_directory(str(tmp_path / "set"))
    example, later = (builder.as_data_source(split="train")[n] for n in (2, 3))
    assert builder.info.metadata["seed"] == 3 and builder.info.splits["train"].num_examples == 4
    assert later["frames"].size == 5 and np.array_equal(later["depth"], everything(1).more["depth"])
    assert np.array_equal(example["frames"], ranked(1)) and example["candidate"] == 1
    assert example["views"].tolist() == list(range(V)) and example["times"].tolist() == list(range(T))


def test_the_format_before_still_reads(tmp_path):
    made = runpy.run_path(str(FIXTURES / "make_records_v1.py"))
    zipfile.ZipFile(FIXTURES / "records_v1.zip").extractall(tmp_path)
    for split, base in (("train", 0), ("validation", 100)):
        scenes = Records(str(tmp_path)).open(split)
        assert len(scenes) == made["COUNTS"][split] and scenes.shape(0) == (2, 3, 8, 8)
        for i in range(len(scenes)):
            wanted, got = made["grid"](i, base), whole(scenes, i)
            found = {"frames": got.frames, "K": got.cameras.K, "c2w": got.cameras.c2w, **got.more}
            assert alike(found, {name: value for name, value in wanted.items() if name != "index"})
            assert scenes.units(i) == {f"unit {i}", "unit 7"} and got.index == i and got.exists is None
    cut = Records(str(tmp_path)).open("train").read(2, Cut(np.array([1]), np.array([2, 0])))
    assert np.array_equal(cut.frames, made["grid"](2, 0)["frames"][np.ix_([1], [2, 0])])


def test_version_2_0_still_reads_where_depth_and_subject_lie_with_the_frames(tmp_path):
    zipfile.ZipFile(FIXTURES / "records_v2_0.zip").extractall(tmp_path)  # [everything(0), everything(1)], by b617574
    scenes = Records(str(tmp_path)).open("train")
    assert [
        record["depth"].size > 0
        for record in map(scenes._records.dataset_info.features.deserialize_example_np, scenes._records)
    ] == [True] * 2
    assert len(scenes) == 2 and all(alike(whole(scenes, i), everything(i)) for i in range(2))


def test_scenes_travel_to_another_process(tmp_path):
    write_scenes(tmp_path / "set", {"test": Split(everything, 2)})
    scenes = Records(str(tmp_path / "set")).open("test")
    travelled = pickle.loads(pickle.dumps(scenes))
    assert alike(whole(travelled, 1), everything(1)) and travelled.fingerprint == scenes.fingerprint


def test_the_fingerprint_tells_data_sets_apart_by_their_values(tmp_path):
    for name, value in (("one", 0), ("same", 0), ("other", 1)):
        write_scenes(
            tmp_path / name, {"train": Split(lambda i, v=value: Scene(np.full((2, 2, 8, 8, 3), v, np.uint8)), 2)}
        )
    one, same, other = (Records(str(tmp_path / name)).open("train").fingerprint for name in ("one", "same", "other"))
    assert one == same != other


def odd_ones(i: int) -> Scene | str:
    return everything(i) if i % 3 else "even"


def test_left_out_candidates_are_counted_up_to_the_last_scene_and_no_further(tmp_path):
    for part in (1, 2, 16):
        out = tmp_path / str(part)
        assert write_scenes(out, {"train": Split(odd_ones, 5, part)}) == {"train": {"even": 3}}
        scenes = Records(str(out)).open("train")
        assert [whole(scenes, i).text[0, 0] for i in range(len(scenes))] == [1, 2, 4, 5, 7]
    with pytest.raises(UserError, match=r"nearly every scene of train is left out .*dark"):
        write_scenes(tmp_path / "none", {"train": Split(lambda i: "dark", 5)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".none.partial", "1", "16", "2"]


SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
from fourreal.data.write import Split, write_scenes
from fourreal.scene import Scene

def make(i):
    with open(os.environ["MADE"], "a") as made:
        made.write(f"{i} {os.getpid()}\\n")
    if "STUCK" in os.environ and i == 3:
        time.sleep(1000)
    if i == 4:
        return "dull"
    return Scene(np.random.default_rng(i).integers(0, 256, (2, 3, 8, 16, 3), np.uint8), exists=np.arange(6).reshape(2, 3) != i)

if __name__ == "__main__":
    print(write_scenes(Path(sys.argv[1]), {"train": Split(make, 7, 3)}, workers=int(sys.argv[2])))
"""


def start(folder: Path, out: str, workers: int, **environment: str) -> subprocess.Popen:
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MADE": str(folder / f"made-{out}.txt"), **environment}
    return subprocess.Popen(
        [sys.executable, folder / "script.py", folder / out, str(workers)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def until(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_writing_of_two_processes_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    killed = start(tmp_path, "killed", 2, STUCK="1")
    parts = tmp_path / ".killed.partial/parts"
    until(lambda: {path.name for path in parts.glob("*.json")} == {"train-0000000.json", "train-0000002.json"})
    killed.kill()
    killed.wait()
    made = [line.split() for line in (tmp_path / "made-killed.txt").read_text().splitlines()]
    until(lambda: not any(runs(int(pid)) for _, pid in made))  # its processes leave with it
    assert not (tmp_path / "killed").exists()
    again = start(tmp_path, "killed", 2)
    assert again.communicate()[0] == "{'train': {'dull': 1}}\n"
    monkeypatch.setenv("MADE", os.devnull)
    make = runpy.run_path(str(tmp_path / "script.py"))["make"]
    write_scenes(tmp_path / "undisturbed", {"train": Split(make, 7, 3)})
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert len(list((tmp_path / "killed").glob("*.array_record-*"))) == 3
    later = (tmp_path / "made-killed.txt").read_text().splitlines()[len(made) :]
    assert sorted(int(line.split()[0]) for line in later) == [3, 4, 5]  # only the part that was not finished
    assert not (tmp_path / ".killed.partial").exists()


def test_a_writing_that_fails_keeps_finished_parts_and_goes_on(tmp_path):
    failing = [3]

    def make(i: int) -> Scene:
        if i in failing:
            raise OSError("the disk is full")
        return everything(i)

    for _ in range(2):
        with pytest.raises(OSError, match="the disk is full"):
            write_scenes(tmp_path / "set", {"train": Split(make, 4, 2)}, settings={"seed": 0})
        assert [path.name for path in tmp_path.iterdir()] == [".set.partial"]
    with pytest.raises(UserError, match=r"begun with other settings \(seed was 0, is 1\): give the same"):
        write_scenes(tmp_path / "set", {"train": Split(make, 4, 2)}, settings={"seed": 1})
    failing.clear()
    write_scenes(tmp_path / "set", {"train": Split(make, 4, 2)}, settings={"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert alike(whole(Records(str(tmp_path / "set")).open("train"), 3), everything(3))


def test_a_writing_that_fails_before_anything_is_finished_leaves_nothing(tmp_path):
    def make(i: int) -> Scene:
        raise RuntimeError("the machine stopped")

    with pytest.raises(RuntimeError, match="the machine stopped"):
        write_scenes(tmp_path / "new/set", {"train": Split(make, 4)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", ["rename", "write_description"])
def test_a_kill_while_the_shards_get_their_names_loses_nothing(tmp_path, monkeypatch, at):
    write_scenes(tmp_path / "undisturbed", {"train": Split(everything, 4, 1)})
    from fourreal.data import write

    with monkeypatch.context() as patch:
        calls = []
        rename = Path.rename

        def stop(*arguments, **named):
            calls.append(1)
            if at == "rename" and len(calls) < 3:
                return rename(*arguments)
            raise KeyboardInterrupt

        patch.setattr(*((Path, "rename") if at == "rename" else (write, "write_description")), stop)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "set", {"train": Split(everything, 4, 1)})
    assert not (tmp_path / "set").exists()
    write_scenes(tmp_path / "set", {"train": Split(lambda i: pytest.fail("made again"), 4, 1)})
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def test_a_part_whose_shard_is_gone_is_made_again(tmp_path):
    def fail(i: int) -> Scene:
        return everything(i) if i < 3 else pytest.fail("as far as that")

    with pytest.raises(pytest.fail.Exception):
        write_scenes(tmp_path / "set", {"train": Split(fail, 4, 1)})
    (tmp_path / ".set.partial/parts").joinpath(f"train-0000001.{os.getpid()}.0").unlink()
    made = []
    write_scenes(tmp_path / "set", {"train": Split(lambda i: made.append(i) or everything(i), 4, 1)})
    assert made == [1, 3]


def test_two_writings_to_one_folder_are_refused(tmp_path):
    def make(i: int) -> Scene:
        with pytest.raises(UserError, match="another process is writing"):
            write_scenes(tmp_path / "set", {"train": Split(everything, 1)})
        return everything(i)

    write_scenes(tmp_path / "set", {"train": Split(make, 1)})
    with pytest.raises(FileInTheWay, match="exists already"):
        write_scenes(tmp_path / "set", {"train": Split(everything, 1)})
    write_scenes(tmp_path / "set", {"train": Split(everything, 2)}, overwrite=True)
    assert len(Records(str(tmp_path / "set")).open("train")) == 2 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": ranked(0)[0]}, "no grid: give"),
        ({"frames": ranked(0).astype(np.float64)}, "frames is float64: expected uint8 or float32"),
        ({"exists": np.ones((V, T))}, "exists is float64: expected bool"),
        ({"exists": np.ones((T, V), bool)}, r"exists has the shape \(7, 5\): expected \(5, 7\)"),
        ({"valid": np.ones((V, T, W, H), bool)}, "valid has the shape"),
        ({"cameras": Cameras(np.ones((V, 3, 3)), np.ones((1, 4, 4)))}, "c2w has the shape"),
        ({"more": {"fps": 3}}, "no place for fps"),
    ],
)
def test_scenes_that_do_not_fit_together_are_refused(tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        write_scenes(tmp_path / "set", {"train": Split(lambda i: everything(i)._replace(**change), 1)})


def test_scenes_of_two_kinds_are_refused_before_all_is_made(tmp_path):
    made = []

    def make(i: int) -> Scene:
        made.append(i)
        return everything(i) if i < 2 else Scene(ranked(i).astype(np.float32))

    with pytest.raises(UserError, match="write scenes of one kind"):
        write_scenes(tmp_path / "set", {"train": Split(make, 100, 2)})
    assert max(made) < 5


def test_missing_and_damaged_data_sets_are_named_in_one_line(tmp_path):
    with pytest.raises(MissingFile, match="none holds no data set: render one with `fourreal data render --out"):
        Records(str(tmp_path / "none")).open("train")
    write_scenes(tmp_path / "set", {"train": Split(everything, 2)})
    source = Records(str(tmp_path / "set"))
    with pytest.raises(UserError, match="no split 'dev': it has train"):
        source.open("dev")
    with pytest.raises(UserError, match=r"scene 0 has 5 views: asked for \[5\], give 0 to 4"):
        source.open("train").read(0, Cut(np.array([5]), np.array([0])))
    with pytest.raises(UserError, match="scene 0 has 7 times"):
        source.open("train").read(0, Cut(np.array([0]), np.array([0.5])))
    damaged = "cannot be read as a data set of grids .*: render or copy it again"
    index = tmp_path / "set/scenes-train.jsonl"
    listed = index.read_text()
    for text in (listed.splitlines()[0], "[]\n", listed.replace("[5, 7", "[5, 0")):
        index.write_text(text)
        with pytest.raises(UserError, match=damaged):
            source.open("train")
    index.unlink()
    with pytest.raises(UserError, match=f"set {damaged}"):
        source.open("train")
    index.write_text(listed)
    (shard,) = (tmp_path / "set").glob("*.array_record-*")
    data = bytearray(shard.read_bytes())
    data[1000:2000] = bytes(1000)
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"set, grid 0 of train, {damaged}"):
        whole(source.open("train"), 0)


def test_reading_and_writing_never_import_tensorflow(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom fourreal.data.sources.records import Records\n"
        "from fourreal.data.write import Split, write_scenes\nfrom fourreal.scene import Cut, Scene\n"
        f"out = Path({str(tmp_path / 'set')!r})\n"
        "write_scenes(out, {'train': Split(lambda i: Scene(np.zeros((2, 2, 8, 8, 3), np.uint8)), 3)})\n"
        "Records(str(out)).open('train').read(0, Cut(np.arange(2), np.arange(1)))\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_shard_writer_takes_a_new_file_where_one_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SHARD_BYTES", 10)
    writer = ShardWriter(tmp_path / "part")
    for record in (b"12345", b"12345", b"1", b"12345678901234"):
        writer.append(record)
    writer.close()
    assert [(file["name"], file["records"], file["bytes"]) for file in writer.files] == [
        ("part.0", 2, 10),
        ("part.1", 1, 1),
        ("part.2", 1, 14),
    ]
