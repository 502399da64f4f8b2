"""How fast a run goes and what its time goes into, by a clock that the tests set."""

import json

import jax
import pytest

from fourreal.parallel.chips import CHIPS
from fourreal.training import pace
from fourreal.training.pace import Pace


class Hosts:
    """Processes of which this is one; the others say what they are told to."""

    def __init__(self, *others: dict, first: bool = True):
        self.others, self.first = others, first

    def exchange(self, name: str, own: dict) -> list[dict]:
        return [own, *self.others]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]


def four_steps(folder, clock, done: int = 0, hosts=None) -> None:
    """5 s of starting, then steps of 2 s, half a second of each without data, a validation of 3 s, a save of 1 s."""
    run = Pace(folder, hosts or Hosts(), done, clock=clock)
    clock.now += 5
    run.lap("starting")
    for number in range(done + 1, done + 5):
        clock.now += 2
        run.waited(0.5)
        run.step(tokens=100, flops=10**12)
        if number % 2 == 0:
            run.log(number)
            clock.now += 3
            run.lap("validation")
            clock.now += 1
            run.lap("saving")
    run.close()


def test_seconds_of_a_step_and_rates_are_of_steps_alone(tmp_path):
    four_steps(tmp_path, Clock())
    for line in lines(tmp_path):
        assert line["speed/step_seconds"] == pytest.approx(2) and line["speed/data_seconds"] == pytest.approx(0.5)
        assert line["speed/tokens_per_second"] == pytest.approx(50) and "speed/mfu" not in line
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


def test_shares_of_the_time_since_the_run_began_sum_to_one(tmp_path):
    four_steps(tmp_path, Clock())
    last = lines(tmp_path)[-1]
    elapsed = 5 + 8 + 4
    for cause, seconds in {"training": 8, "validation": 3, "saving": 1, "starting": 5}.items():
        assert last[f"goodput/{cause}"] == pytest.approx(seconds / elapsed)
    assert last["goodput/lost"] == pytest.approx(0)


def test_steps_that_a_kill_undid_and_the_wait_until_the_next_start_are_lost(tmp_path):
    clock = Clock()
    four_steps(tmp_path, clock)  # ends at 1021; its checkpoint is that of step 2, logged at 1009
    clock.now = 1100
    four_steps(tmp_path, clock, done=2)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]
    last = lines(tmp_path)[-1]
    spent = {
        "training": 4 + 8,
        "validation": 3,
        "saving": 1,
        "starting": 10,
    }  # what the line of step 2 knows, and 8 steps
    elapsed = 1100 + 5 + 8 + 4 - 1000
    for cause, seconds in spent.items():
        assert last[f"goodput/{cause}"] == pytest.approx(seconds / elapsed), cause
    assert last["goodput/lost"] == pytest.approx(1 - sum(spent.values()) / elapsed)


def test_hosts_are_told_as_least_median_and_most(tmp_path):
    others = [{"step_seconds": 3.0, "data_seconds": 0.0}, {"step_seconds": 9.0, "data_seconds": 0.1}]
    four_steps(tmp_path, Clock(), hosts=Hosts(*others))
    line = lines(tmp_path)[0]
    found = [line[f"speed/step_seconds{part}"] for part in ("_min", "", "_max")]
    assert found == pytest.approx([2, 3, 9]) and line["speed/data_seconds_max"] == pytest.approx(0.5)


def test_only_the_first_process_writes(tmp_path):
    four_steps(tmp_path, Clock(), hosts=Hosts(first=False))
    assert not (tmp_path / "speed.jsonl").exists()


def test_utilization_is_of_the_peak_of_all_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "chip_of", lambda kind: CHIPS["v5e"])
    four_steps(tmp_path, Clock())
    peak = 197e12 * len(jax.devices())
    assert lines(tmp_path)[0]["speed/mfu"] == pytest.approx(0.5e12 / peak)
