"""Reading again, with faults that the system itself raises."""

import errno
import os

import numpy as np
import pytest
from safetensors import SafetensorError
from unreadable import break_file, mend_file, open_files_broken

from fourreal.host import retry
from fourreal.host.retry import errno_of, file_hash, read_again


def test_read_that_fails_by_a_fault_is_tried_again_after_growing_pauses_with_a_line_each(tmp_path, monkeypatch, capsys):
    path, paused = tmp_path / "file", []
    path.write_bytes(b"content")
    break_file(path)

    def sleep(seconds):
        paused.append(seconds)
        if len(paused) == 3:
            mend_file(path)

    monkeypatch.setattr(retry.time, "sleep", sleep)
    assert read_again(path.read_bytes) == b"content"
    assert paused == [1, 2, 4]
    line = f"[Errno {errno.EIO}] {os.strerror(errno.EIO)}"
    assert capsys.readouterr().err == "".join(f"{line}: reading again in {pause} s\n" for pause in paused)


def test_fault_that_stays_is_raised_after_some_tens_of_seconds(tmp_path, monkeypatch):
    path, paused = tmp_path / "file", []
    path.touch()
    break_file(path)
    monkeypatch.setattr(retry.time, "sleep", paused.append)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as raised:
        file_hash(path)
    assert raised.value.errno == errno.EIO and 10 <= sum(paused) <= 100


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "x"), KeyError()]
)
def test_error_that_is_no_fault_is_raised_at_once(monkeypatch, error):
    monkeypatch.setattr(retry.time, "sleep", lambda _: pytest.fail("it waits"))

    def read():
        raise error

    with pytest.raises(type(error)):
        read_again(read)


def test_number_of_a_fault_is_found_in_what_array_record_and_safetensors_say(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    path = tmp_path / "a.array_record"
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(np.random.default_rng(0).bytes(100_000))
    writer.close()
    reader = module.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
    with open_files_broken(tmp_path), pytest.raises(RuntimeError) as raised:
        reader.read([0])
    assert errno_of(raised.value) == errno.EIO
    assert errno_of(SafetensorError("Error while serializing: I/O error (os error 28)")) == errno.ENOSPC
    assert errno_of(RuntimeError("Corrupted Riegeli/records file")) is None
