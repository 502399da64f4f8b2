"""The two logs of a run: what a killed process leaves in them, and that a resumed one goes on without gap or overlap."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorboardX")

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from fourreal.training.log import MetricsWriter

LINES, EVENTS = "metrics.jsonl", "tensorboard/events.out.tfevents.run"
SHEET = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def write(folder: Path, first: int, last: int, start_step: int) -> None:
    """What a process writes for some steps."""
    writer = MetricsWriter(folder, start_step)
    for step in range(first, last + 1):
        writer.write(step, {"train/loss": step / 3, "train/lr": np.inf if step == 2 else 0.1})
        writer.picture(step, "validation", SHEET)
    writer.close()


@pytest.fixture(autouse=True)
def same_clock(monkeypatch):
    """Events carry the time; with a clock that stands still, files compare."""
    monkeypatch.setattr("fourreal.training.log.time.time", lambda: 1.5)


@pytest.fixture
def unbroken(tmp_path) -> Path:
    """The logs of steps 1 to 5 by one process."""
    (tmp_path / "unbroken").mkdir()
    write(tmp_path / "unbroken", 1, 5, 0)
    return tmp_path / "unbroken"


def assert_same(folder: Path, expected: Path) -> None:
    for name in (LINES, EVENTS):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_events_are_the_records_that_tensorboardx_writes(unbroken, tmp_path):
    from tensorboardX.summary import image, scalar

    writer = RecordWriter(str(tmp_path / "expected"))
    contents = [{"file_version": "brain.Event:2"}]
    for step in range(1, 6):
        scalars = [scalar("train/loss", step / 3)] + [scalar("train/lr", 0.1)] * (step != 2)
        contents += [{"step": step, "summary": one} for one in scalars]
        contents.append({"step": step, "summary": image("validation", SHEET, dataformats="HWC")})
    for content in contents:
        writer.write(Event(wall_time=1.5, **content).SerializeToString())
    writer.close()
    assert (unbroken / EVENTS).read_bytes() == (tmp_path / "expected").read_bytes()


def test_number_that_is_not_finite_is_null(unbroken):
    lines = [json.loads(line) for line in (unbroken / LINES).read_text().splitlines()]
    assert [line["train/lr"] for line in lines] == [0.1, None, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_resumed_logs_drop_what_came_after_the_checkpoint(unbroken, tmp_path, step):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", 1, 5, 0)
    write(tmp_path / "run", step + 1, 5, step)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_events_go_on_in_a_new_file_where_one_is_large_and_are_the_same_in_all(unbroken, tmp_path, monkeypatch, step):
    monkeypatch.setattr("fourreal.training.log.FILE_BYTES", 400)  # about two steps
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", 1, 5, 0)
    write(tmp_path / "run", step + 1, 5, step)
    files = sorted((tmp_path / "run" / "tensorboard").iterdir())
    assert len(files) > 2 and all(400 < path.stat().st_size < 800 for path in files[:-1])
    version = (unbroken / EVENTS).read_bytes()[:40]  # of the format, at the beginning of each
    assert b"".join(path.read_bytes().removeprefix(version) for path in files) == (
        (unbroken / EVENTS).read_bytes().removeprefix(version)
    )


@pytest.mark.parametrize("log", [LINES, EVENTS])
@pytest.mark.parametrize("written", [1, 9, 13, 21, 30])
@pytest.mark.parametrize("zeros", [0, 9, 4096])
def test_torn_last_entry_is_written_anew(unbroken, tmp_path, log, written, zeros):
    """Killed within the first entry after step 3; zeros are what a power cut may leave of a block."""
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", 1, 3, 0)
    torn = tmp_path / "run" / log
    whole = torn.stat().st_size
    torn.write_bytes((unbroken / log).read_bytes()[: whole + written] + bytes(zeros))
    write(tmp_path / "run", 4, 5, 3)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("log", [LINES, EVENTS])
def test_broken_entry_in_the_middle_costs_no_other_entry(unbroken, log):
    data = bytearray((unbroken / log).read_bytes())
    place = data.index(b"train/loss")  # of step 1
    data[place - 1 : place + 1] = b"{{"
    (unbroken / log).write_bytes(data)
    write(unbroken, 6, 6, 5)
    assert (unbroken / log).read_bytes().startswith(data) and len((unbroken / log).read_bytes()) > len(data)


def test_missing_lines_are_told_and_begin_anew_after_the_checkpoint(unbroken, capsys):
    (unbroken / LINES).unlink()
    write(unbroken, 4, 5, 3)
    assert "metrics.jsonl is missing: it begins anew after step 3\n" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (unbroken / LINES).read_text().splitlines()] == [4, 5]
