"""Checkpoints of a small state: what a kill, a full disk or a broken disk leaves behind, and what is made of it."""

import errno
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unreadable import break_file, mend_file

from fourreal.errors import LOST, exit_code
from fourreal.host import retry
from fourreal.host.retry import file_hash
from fourreal.parallel.layout import placed_shapes
from fourreal.training import orbax
from fourreal.training.orbax import SEAL, Checkpoints

FILES = (  # one of each kind that a checkpoint consists of
    SEAL,
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "state/_METADATA",
    "state/_sharding",
    "state/array_metadatas/process_0",
    "state/manifest.ocdbt",
    "state/d/*",
    "state/ocdbt.process_0/manifest.ocdbt",
    "state/ocdbt.process_0/d/*",
)
EMPTY = "orbax.checkpoint"  # a file of orbax that has nothing in it
UNUSED = (  # what these say, orbax does not always need to restore the arrays
    *("_CHECKPOINT_METADATA", "commit_success.txt", "state/_METADATA", "state/_sharding"),
    *("state/array_metadatas/process_0", "state/ocdbt.process_0/manifest.ocdbt"),
)
DAMAGES = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "half-written": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
}


def state(step: int, size: int = 50) -> dict:
    kernel = np.random.default_rng(step).normal(size=(size, size)).astype(np.float32)
    return {
        "step": jnp.int32(step),
        "params": {"kernel": jnp.asarray(kernel)},
        "frozen": {"table": jnp.arange(9.0)},
        "codec": {},
    }


def assert_restores(checkpoints: Checkpoints, *steps: int) -> None:
    found = checkpoints.restore(placed_shapes(state(6), {}))
    assert checkpoints.done in steps
    wanted = state(checkpoints.done)
    del wanted["codec"]  # is the config's
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of 2, 4 and 6 steps, of which the newest two stay."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder)
    for step in (2, 4, 6):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_newest_of_two_kept_checkpoints_is_restored_bit_for_bit(saved, capsys):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["4", "6"]
    checkpoints = Checkpoints(saved)
    assert checkpoints.done == 6 and not capsys.readouterr().out
    assert_restores(checkpoints, 6)
    checkpoints.close()


def test_checkpoints_of_whole_multiples_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(step, state(step))
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "6", "7"]
    assert checkpoints.seconds > 0


def test_frozen_part_that_is_there_is_not_written_again(folder):
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in (folder / "frozen").rglob("*")}
    for table in (state(1)["frozen"]["table"], jnp.zeros(9)):
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, state(1) | {"frozen": {"table": table}})
        checkpoints.close()
        now = {path: path.stat().st_mtime_ns for path in (folder / "frozen").rglob("*")}
        assert (now == before) == bool(table.any())
        shutil.rmtree(folder / "checkpoints")


def test_the_kinds_of_files_are_all_there_are(saved):
    newest = saved / "checkpoints" / "6"
    kinds = {path for pattern in (*FILES, EMPTY) for path in newest.glob(pattern)}
    assert kinds == {path for path in newest.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_newest_checkpoint_with_a_broken_file_gives_way_to_the_one_before(folder, name, damage, capsys):
    """Sizes tell at once, what reads differently after loading, which leaves it for the next start to try again."""
    (path,) = (folder / "checkpoints" / "6").glob(name)
    data = DAMAGES[damage](path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    checkpoints = Checkpoints(folder)
    assert_restores(checkpoints, 4, 6)
    checkpoints.close()
    by_size, said = damage not in ("zeros", "one bit") or name == SEAL, capsys.readouterr().out
    if not by_size and name in UNUSED and checkpoints.done == 6:  # restored bit for bit without it
        assert not said
        return
    assert checkpoints.done == 4
    assert sorted(os.listdir(folder / "checkpoints")) == (["4"] if by_size else ["4", "6"])
    assert said.startswith(f"the checkpoint of 6 steps {'is broken' if by_size else 'cannot be read'} (")
    assert "): going back to the one of 4 steps" in said and said.count("\n") == 1


def test_arrays_that_read_well_but_not_as_they_were_written_are_noticed(folder, capsys):
    """As a file of another run under the same name: whole in itself."""
    other = Checkpoints(folder.parent / "other")
    other.save(6, state(7))
    other.close()
    newest = folder / "checkpoints" / "6"
    sealed = (newest / SEAL).read_bytes()
    shutil.rmtree(newest)
    shutil.copytree(folder.parent / "other" / "checkpoints" / "6", newest)
    values = json.loads(sealed)
    values["sealed"]["files"] = json.loads((newest / SEAL).read_text())["sealed"]["files"]
    (newest / SEAL).write_text(
        json.dumps({"sealed": values["sealed"], "crc32": zlib.crc32(json.dumps(values["sealed"]).encode())})
    )
    checkpoints = Checkpoints(folder)
    assert_restores(checkpoints, 4)
    checkpoints.close()
    assert "of 6 steps cannot be read (['params']['kernel'] is damaged): going back" in capsys.readouterr().out


def test_checkpoint_under_a_seal_of_an_earlier_version_is_checked_by_its_files(folder):
    for path in (folder / "frozen", folder / "checkpoints" / "6", folder / "checkpoints" / "4"):
        files = [file for file in path.rglob("*") if file.is_file() and file.name != SEAL]
        (path / SEAL).write_text(json.dumps({str(file.relative_to(path)): file_hash(file) for file in files}))
    checkpoints = Checkpoints(folder)
    assert_restores(checkpoints, 6)
    with pytest.raises(ValueError, match="does not fit this config"):
        checkpoints.restore(placed_shapes(state(6, size=60), {}))
    checkpoints.close()
    (path,) = (folder / "checkpoints" / "6").glob("state/ocdbt.process_0/d/*")
    path.write_bytes(DAMAGES["one bit"](path.read_bytes()))
    checkpoints = Checkpoints(folder)
    assert_restores(checkpoints, 4)
    checkpoints.close()


READS = """
import sys
import jax.numpy as jnp
from fourreal.training.orbax import Checkpoints
def read():
    return int(open("/proc/self/io").read().split()[1])  # all bytes that this process has read, of caches, too
def state(step):
    return {"step": jnp.int32(step), "params": {"kernel": jnp.full((1000, 1000), step / 7)}, "frozen": {}, "codec": {}}
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, state(1))
checkpoints.check(wait=True)
before = read()
checkpoints.save(2, state(2))
checkpoints.check(wait=True)
print(read() - before)
"""


def test_save_reads_back_nothing_of_what_it_wrote(tmp_path):
    """Beside the directories of orbax's own files, a few kB, which do not grow with the arrays of 4 MB."""
    done = subprocess.run([sys.executable, "-c", READS, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000


def test_steps_after_a_fallback_are_saved_anew(folder, capfd):
    next((folder / "checkpoints" / "6").glob("state/ocdbt.process_0/d/*")).write_bytes(b"half")
    checkpoints = Checkpoints(folder)
    assert checkpoints.done == 4
    assert_restores(checkpoints, 4)
    checkpoints.save(6, state(6))
    checkpoints.close()
    said = capfd.readouterr()
    assert said.out.count("\n") == 1 and not said.err
    checkpoints = Checkpoints(folder)
    assert_restores(checkpoints, 6)
    checkpoints.close()


@pytest.mark.parametrize("path", [SEAL, "state/manifest.ocdbt"])
def test_newest_checkpoint_that_cannot_be_read_is_set_aside_and_tried_at_the_next_start(
    folder, monkeypatch, capsys, path
):
    monkeypatch.setattr(retry, "PAUSES", ())
    for _ in range(2):
        if path == SEAL:
            break_file(folder / "checkpoints" / "6" / path)
        checkpoints = Checkpoints(folder)
        if path != SEAL:  # after its size was looked at
            break_file(folder / "checkpoints" / "6" / path)
        assert_restores(checkpoints, 4)
        checkpoints.close()
        assert sorted(os.listdir(folder / "checkpoints")) == ["4", "6"]
        said = capsys.readouterr().out
        assert said.startswith("the checkpoint of 6 steps cannot be read (") and said.count("\n") == 1
        assert said.endswith("): going back to the one of 4 steps; it stays, and the next start tries it again\n")
        mend_file(folder / "checkpoints" / "6" / path)
    checkpoints = Checkpoints(folder)
    assert_restores(checkpoints, 6)
    checkpoints.close()


def test_checkpoint_that_was_set_aside_stays_until_its_steps_or_later_ones_are_saved(folder, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", ())
    unreadable = folder / "checkpoints" / "6" / SEAL
    for step, left in ((5, ["4", "5", "6"]), (6, ["5", "6"])):
        break_file(unreadable)
        checkpoints = Checkpoints(folder)
        checkpoints.restore(placed_shapes(state(6), {}))
        checkpoints.save(step, state(step))
        checkpoints.close()
        assert sorted(os.listdir(folder / "checkpoints")) == left
        if step == 5:
            mend_file(unreadable)
    break_file(unreadable)
    checkpoints = Checkpoints(folder)
    checkpoints.restore(placed_shapes(state(6), {}))
    checkpoints.save(8, state(8))
    checkpoints.close()
    assert sorted(os.listdir(folder / "checkpoints")) == ["5", "8"]


def test_checkpoints_of_which_none_can_be_read_stay_as_they_are(folder, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", ())
    for step in ("4", "6"):
        break_file(folder / "checkpoints" / step / SEAL)
    with pytest.raises(OSError, match="Input/output error") as raised:
        Checkpoints(folder)
    assert exit_code(raised.value) == LOST
    assert sorted(os.listdir(folder / "checkpoints")) == ["4", "6"]


def break_inside(path: Path, folder: Path, _: dict) -> bool:
    """Instead of `check_fit`: breaks a file of the folder."""
    if path.is_relative_to(folder):
        break_file(path)
    return True


def test_checkpoint_that_cannot_be_read_for_a_moment_is_read_again(folder, monkeypatch):
    for broken in (folder / "checkpoints" / "6" / "state" / "_METADATA", next((folder / "frozen").rglob("_METADATA"))):
        monkeypatch.setattr(retry.time, "sleep", lambda _, broken=broken: mend_file(broken))
        monkeypatch.setattr(orbax, "check_fit", functools.partial(break_inside, broken))  # after the sizes
        checkpoints = Checkpoints(folder)
        assert_restores(checkpoints, 6)
        checkpoints.close()


def test_checkpoints_that_cannot_be_read_any_more_are_no_misfit(folder, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", ())
    checkpoints = Checkpoints(folder)
    for step in ("4", "6"):
        break_file(folder / "checkpoints" / step / "state" / "_METADATA")
    with pytest.raises(OSError) as raised:
        checkpoints.restore(placed_shapes(state(6), {}))
    assert exit_code(raised.value) == LOST
    checkpoints.close()
    assert sorted(os.listdir(folder / "checkpoints")) == ["4", "6"]


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a temporary folder"])
def test_newest_checkpoint_that_is_gone_falls_back_to_the_one_before(folder, left):
    newest = folder / "checkpoints" / "6"
    if left == "a temporary folder":
        newest.rename(newest.with_name("6.orbax-checkpoint-tmp"))
    else:
        shutil.rmtree(newest)
    if left == "an empty folder":
        newest.mkdir()
    checkpoints = Checkpoints(folder)
    assert checkpoints.done == 4
    assert_restores(checkpoints, 4)
    checkpoints.close()
    assert os.listdir(folder / "checkpoints") == ["4"]


def test_folder_whose_checkpoints_are_all_broken_is_refused_and_left_alone(folder):
    (folder / "checkpoints" / "6" / SEAL).unlink()
    (folder / "checkpoints" / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        ValueError, match=r"every checkpoint in .* is broken \(6: .*; 4: .*\): put a copy back, or start"
    ):
        Checkpoints(folder)
    assert sorted(folder.rglob("*")) == before


def test_first_checkpoint_without_a_seal_is_deleted(folder, capsys):
    """What a kill between the first save and its seal leaves; a frozen part, saved before, is saved anew."""
    shutil.rmtree(folder / "checkpoints" / "6")
    (folder / "checkpoints" / "4" / SEAL).unlink()
    checkpoints = Checkpoints(folder)
    checkpoints.close()
    assert checkpoints.done is None and os.listdir(folder / "checkpoints") == []
    assert "of 4 steps is broken (it was not finished): there is none before it\n" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "zeros"])
def test_broken_frozen_part_is_refused_with_its_name(folder, damage):
    path = next((folder / "frozen").glob("state/d/*"))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    checkpoints = Checkpoints(folder)
    with pytest.raises(ValueError, match=r"run/frozen, which all checkpoints need, is broken \(.*\): put a copy"):
        checkpoints.restore(placed_shapes(state(6), {}))
    checkpoints.close()


def test_whole_checkpoint_of_other_shapes_is_a_misfit_and_no_damage(folder):
    checkpoints = Checkpoints(folder)
    with pytest.raises(ValueError, match="does not fit this config"):
        checkpoints.restore(placed_shapes(state(6, size=60), {}))
    checkpoints.close()
    assert Checkpoints(folder).done == 6


@pytest.mark.parametrize("limit", [0, 300, 20_000])
def test_save_that_the_disk_refuses_is_one_line_and_leaves_the_checkpoint_before(folder, limit, capfd):
    """A limit on the size of files stands for a full disk: the same write fails, halfway or at once."""
    checkpoints = Checkpoints(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(OSError, match=f"the checkpoint of 8 steps could not be saved: {os.strerror(errno.EFBIG)}"):
            checkpoints.save(8, state(8, size=200))
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not capfd.readouterr().err
    checkpoints = Checkpoints(folder)
    assert checkpoints.done == 6
    assert_restores(checkpoints, 6)
    checkpoints.save(9, state(9))  # what failed may still be writing to the folder of 8
    checkpoints.close()
    assert checkpoints.done == 9 and {"6", "9"} <= set(os.listdir(folder / "checkpoints"))


def test_failed_save_is_raised_by_the_next_check_without_waiting_for_the_next_save(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fourreal.training.orbax.seal", full)
    checkpoints = Checkpoints(folder)
    checkpoints.save(8, state(8))
    with pytest.raises(OSError, match=r"the checkpoint of 8 steps could not be saved: .*No space left"):
        for _ in range(500):
            checkpoints.check()
            time.sleep(0.02)
    assert checkpoints.done == 6
    checkpoints.close()
