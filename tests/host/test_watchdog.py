"""The watchdog, with a limit of tenths of a second."""

import re
import time
from dataclasses import fields

import pytest

from fourreal.host import watchdog as module
from fourreal.host.watchdog import HangConfig, Watchdog

SECOND = 1 / 60  # in minutes


def test_standstill_is_named_at_doubling_intervals_until_something_moves(capsys):
    text, deadline = "", time.monotonic() + 60

    def said(step: str, count: int) -> list[float]:
        """The seconds in the first lines about a step, once there are so many."""
        nonlocal text
        line = rf"process 1 of 4 on host: no progress for ([\d.]+) min; step {step}\n"
        while len(found := re.findall(line, text)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
            text += capsys.readouterr().err
        return [float(minutes) * 60 for minutes in found[:count]]

    with Watchdog(0.1 * SECOND, "process 1 of 4 on host") as watchdog:
        watchdog.at(7, "compiling")
        first = said("7, compiling", 4)
        watchdog.at(8, "saving")
        second = said("8, saving", 1)
    for seconds, least in zip((*first, *second), (0.1, 0.2, 0.4, 0.8, 0.1), strict=True):
        assert seconds > 0.99 * least


def test_watchdog_says_nothing_while_things_move_or_when_it_is_off(capsys):
    for minutes, pause in ((1.5 * SECOND, 0.3), (0, 0.05)):
        with Watchdog(minutes, "process 0 of 1 on host") as watchdog:
            for step in range(6):
                watchdog.at(step, "step")
                time.sleep(pause)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("phase", "limit"),
    [
        ("step", "step"),
        ("waiting for data", "step"),
        ("compiling", "compile"),
        ("validation", "compile"),
        ("saving", "save"),
        ("restoring", "restore"),
        ("looking at the run's folder", "restore"),
    ],
)
def test_each_phase_ends_at_the_limit_of_its_kind_and_0_is_none(monkeypatch, phase, limit):
    ended = []
    monkeypatch.setattr(module, "end", lambda line, _: ended.append(line))
    for name in (field.name for field in fields(HangConfig)):
        hang = HangConfig(**{field.name: 0.1 * SECOND * (field.name == name) for field in fields(HangConfig)})
        with Watchdog(0, "process 0 of 1 on host", hang) as watchdog:
            watchdog.at(3, phase)
            deadline = time.monotonic() + (20 if name == limit else 0.4)
            while not ended and time.monotonic() < deadline:
                time.sleep(0.01)
        assert bool(ended) == (name == limit)
        assert all(
            re.fullmatch(rf"process 0 of 1 on host: no progress for \S+ min; step 3, {phase}", line) for line in ended
        )
        ended.clear()
