"""A run in two and four processes that loses one at random moments: killed (a lost host), or stopped for good (a hang).

python benchmarks/kills.py --faults 20

After each, the others must end by themselves, with the code for a new start, and all are started again with --resume, as two
or as four. What the run leaves at its end (checkpoint, weights, metrics) is compared, bit for bit, with a run that nobody
disturbed. It is the small run of tests/run_in_processes.py, on four CPU devices.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from run_in_processes import MIXED, Processes, assert_same_run, happened, in_save, steps_of, write_config

from fourreal.errors import LOST

STEPS = ("--steps", "1000", "--save-every", "20")
HANG = ("--hang.step", "0.1", "--hang.save", "1", "--hang.restore", "2", "--hang.compile", "3")  # minutes


def disturb(run: Processes, folder: Path, rng: random.Random) -> str:
    """Kills or stops one process in a random phase, and waits for the others. Says what was done, and how long they took."""
    done = steps_of(folder)[-1] if happened(lambda: steps_of(folder)) else 0
    phase, kind = rng.choice(("start", "step", "step", "save")), rng.choice((signal.SIGKILL, signal.SIGSTOP))
    if phase == "start":
        time.sleep(rng.uniform(0, 8))
    else:
        further = done + rng.randint(1, 30)
        run.wait_until(lambda: steps_of(folder)[-1] > further and (phase == "step" or in_save(folder)))
        time.sleep(rng.uniform(0, 0.05))
    victim = rng.randrange(len(run.processes))
    run.processes[victim].send_signal(kind)
    began = time.monotonic()
    others = [process for index, process in enumerate(run.processes) if index != victim]
    codes = [process.wait(400) for process in others]
    took = time.monotonic() - began
    run.end()
    # where process 0 dies, JAX's own service may abort the others first
    expected = {LOST} | ({-signal.SIGABRT} if victim == 0 else set())
    assert set(codes) <= expected, (codes, [run.said(index) for index in range(len(run.processes))])
    steps = steps_of(folder)[-1] if happened(lambda: steps_of(folder)) else 0
    word = "killed" if kind == signal.SIGKILL else "stopped"
    return f"process {victim} of {len(run.processes)} {word} in a {phase}, {steps} steps: the others ended after {took:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        config, folder, whole = write_config(Path(scratch)), Path(scratch) / "run", Path(scratch) / "whole"

        def start(out: Path, count: int, *options: str) -> Processes:
            resume = ("--resume",) if (out / "config.json").is_file() else ()
            options = *MIXED, *STEPS, *options, *resume
            return Processes(config, out, count, 4 // count, *options, FOURREAL_START_TIMEOUT="20")

        run = start(whole, 2)
        assert run.wait(1200) == [0, 0], run.said(0)
        for number in range(options.faults):
            print(f"{number + 1:3d} {disturb(start(folder, rng.choice((2, 4)), *HANG), folder, rng)}", flush=True)
        run = start(folder, 4)
        assert run.wait(1200) == [0] * 4, run.said(0)
        assert_same_run(folder, whole)
    print(f"{options.faults} faults, seed {options.seed}: the run is the one that nobody disturbed, bit for bit")


if __name__ == "__main__":
    main()
