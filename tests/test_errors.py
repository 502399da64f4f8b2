"""How commands end: what an error is printed as, and its exit code."""

import errno
import os
import subprocess
import sys

import pytest

from fourreal import cli
from fourreal.errors import LossNotFinite, MissingFile, TrainingStopped, UserError, WriteFailed


def end(monkeypatch, capsys, error: BaseException) -> tuple[int, str]:
    """(exit code, what is said) of a verb that ends with an error."""

    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "parse", fail)
    monkeypatch.delenv("FOURREAL_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample"])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("give more"), 2, "give more"),
        (MissingFile("there is\nno x"), 2, "there is no x"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "[Errno 13] Permission denied: 'x'"),
        (
            OSError(errno.ENOSPC, "No space left"),
            2,
            "No space left: free some space, or name another folder to write to",
        ),
        (WriteFailed("x cannot be written", errno.EIO), 3, "x cannot be written"),
        (TrainingStopped("it goes on", errno.EIO), 3, "it goes on"),
        (TrainingStopped("it goes on"), 3, "it goes on"),
        (TrainingStopped("it goes on", errno.ENOSPC), 2, "it goes on"),
        (TimeoutError("2 did not join"), 3, "2 did not join"),
        (LossNotFinite("loss nan"), 1, "loss nan"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_expected_error_is_one_line_and_its_type_decides_the_exit_code(monkeypatch, capsys, error, code, line):
    found, said = end(monkeypatch, capsys, error)
    expected = f"error: {line}" if line else "interrupted"
    assert (found, said) == (code, f"fourreal sample: {expected}\n")


def test_ctrl_c_that_fell_into_compiled_code_is_one_line_too(monkeypatch, capsys):
    error = SystemError("returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    assert end(monkeypatch, capsys, error) == (130, "fourreal sample: interrupted\n")


@pytest.mark.parametrize("kind", [ValueError, TypeError, FloatingPointError, RuntimeError, ImportError])
def test_any_other_error_is_a_bug_and_shows_its_traceback(monkeypatch, capsys, kind):
    with pytest.raises(kind, match="once that is mended, --resume goes on"):
        end(monkeypatch, capsys, kind("once that is mended, --resume goes on after 3 steps"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["data"], ["sample", "--help"]])
def test_closed_pipe_is_silent(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fourreal", *words], stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False
    )
    os.close(writer)
    assert done.returncode == 141 and done.stderr == b""
