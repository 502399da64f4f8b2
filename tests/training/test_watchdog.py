"""The watchdog, with a limit of tenths of a second."""

import re
import time

from fourreal.training.watchdog import Watchdog

SECOND = 1 / 60  # in minutes


def test_standstill_is_named_at_doubling_intervals_until_something_moves(capsys):
    with Watchdog(0.1 * SECOND, "process 1 of 4 on host") as watchdog:
        watchdog.at(7, "compiling")
        time.sleep(1.1)
        watchdog.at(8, "saving")
        time.sleep(0.3)
    said = re.findall(
        r"process 1 of 4 on host: no progress for ([\d.]+) min; step (\d+), (\w+)\n", capsys.readouterr().err
    )
    first, second = (
        [float(minutes) * 60 for minutes, *at in said if at == wanted]
        for wanted in (["7", "compiling"], ["8", "saving"])
    )
    assert len(first) == 4 and 1 <= len(second) <= 2
    for seconds, least in zip((*first, second[0]), (0.1, 0.2, 0.4, 0.8, 0.1), strict=True):
        assert seconds > 0.99 * least


def test_watchdog_says_nothing_while_things_move_or_when_it_is_off(capsys):
    for minutes, pause in ((0.5 * SECOND, 0.05), (0, 0.3)):
        with Watchdog(minutes, "process 0 of 1 on host") as watchdog:
            for step in range(6):
                watchdog.at(step, "step")
                time.sleep(pause / (1 if minutes else 6))
    assert not capsys.readouterr().err
