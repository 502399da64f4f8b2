"""What a checkpoint costs a run on a frozen base: how long a save stops the loop, what it reads, what a start holds.

python benchmarks/checkpoints.py --width 1536 --depth 10
python benchmarks/checkpoints.py --width 1536 --depth 48 --trains sync          # 1.4 B are frozen; needs 20 GB

The model is not compiled and nothing trains: a save takes as long without.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import jax

from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.weights import save_weights
from fourreal.conditions import Hints
from fourreal.data.batches import PipelineConfig
from fourreal.data.sources.shift_and_roll import ShiftAndRoll
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params
from fourreal.parallel.mesh import make_mesh
from fourreal.serialize import to_json
from fourreal.training import prepare as preparing
from fourreal.training.config import TrainConfig
from fourreal.training.local import LocalCheckpoints
from fourreal.training.run_folder import Start
from fourreal.training.storage import Storage


def bytes_read() -> int:
    """That this process has asked of files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def live_bytes() -> int:
    """Of all arrays on devices."""
    return sum(x.nbytes for x in jax.live_arrays())


def watch(stopped: threading.Event, peak: list[int]) -> None:
    """Notes the most bytes that were live."""
    while not stopped.wait(0.005):
        peak[0] = max(peak[0], live_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--trains", choices=("attention", "sync"), default="attention")
    parser.add_argument("--saves", type=int, default=3)
    options = parser.parse_args()
    width = options.width
    model = VideoDiTConfig(
        width, options.depth, width // 64, 4 * width, (1, 4, 4), conditions=(Hints(),), dtype="bfloat16"
    )
    config = TrainConfig(
        name="checkpoints",
        model=model,
        grid=GridDiTConfig("soft" if options.trains == "sync" else "none"),
        data=PipelineConfig(source=ShiftAndRoll("plain"), views=2, times=2, batch_size=1),
        trains=options.trains,
        eval_grids=1,
    )
    preparing.describe_cost = lambda *_: ""  # which compiles
    with tempfile.TemporaryDirectory() as temporary, jax.set_mesh(make_mesh(config.mesh)):
        base, folder = Path(temporary, "base"), Path(temporary, "run")
        spec = ModelSpec(model, GridDiTConfig("base"), 2, 2, (64, 64))
        save_weights(base, fresh_params(model, spec.grid, 0), to_json(spec))
        folder.mkdir()
        stopped, peak = threading.Event(), [0]
        watcher = threading.Thread(target=watch, args=(stopped, peak))
        watcher.start()
        began = time.monotonic()
        run = preparing.prepare(config, Storage(folder), Start(init_from=str(base)))
        took = time.monotonic() - began
        stopped.set()
        watcher.join()
        count = {part: sum(x.size for x in jax.tree.leaves(run.state[part])) for part in ("params", "frozen")}
        held = sum(x.nbytes for x in jax.tree.leaves(run.state))
        print(f"{count['params'] / 1e6:.1f} M train, {count['frozen'] / 1e6:.1f} M are frozen")
        print(f"start {took:.1f} s: {peak[0] / 1e6:,.0f} MB live at most for a state of {held / 1e6:,.0f}")
        for number in range(1, options.saves + 1):
            run.done, before, began = number, bytes_read(), time.monotonic()
            run.save()
            stall = time.monotonic() - began
            run.checkpoints.check(wait=True)
            whole = time.monotonic() - began
            read = bytes_read() - before
            print(f"save {number}: the loop waits {stall:.2f} s; sealed after {whole:.2f} s; {read / 1e6:,.2f} MB read")
        local = LocalCheckpoints(str(Path(temporary, "local")), folder, str)
        for number in range(1, options.saves + 1):
            began = time.monotonic()
            local.save(number, run.state, 0)
            stall = time.monotonic() - began
            local.wait()
            print(f"local save {number}: the loop waits {stall:.2f} s; written after {time.monotonic() - began:.2f} s")
        local.close()
        run.close()


if __name__ == "__main__":
    main()
