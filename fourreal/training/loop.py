"""The training loop. `run(config, folder)` trains in a run's folder and leaves its weights there.

Order of operations; resuming relies on it:
  1. step s is dispatched on batch s (position = step, so nothing about the data is stored)
  2. the numbers of step s - 1 are fetched and batch s + 1 is taken from the prefetcher while step s runs
  3. after s + 1 steps: metrics, then validation, then checkpoint, each at its own interval
So a checkpoint of n steps holds everything that comes of the first n batches, and the device never waits for the host.
SIGTERM and numbers that are not finite save and stop.

The state comes from, in this order: the run's own newest checkpoint (`resume`), the weights named by `init_from` (parameters
only), a fresh start.
"""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from fourreal.config import ModelSpec, TrainConfig, to_json
from fourreal.data.pipeline import grid_batches
from fourreal.models.build import make_forward, split_model
from fourreal.models.weights import CONFIG, save_weights
from fourreal.sampling.checkpoints import RUN_WEIGHTS
from fourreal.training.checkpoint import Checkpoints, shapes_of
from fourreal.training.cost import compiled_bytes, matmul_flops
from fourreal.training.initialize import initial_params
from fourreal.training.metrics import MetricsWriter
from fourreal.training.optimizer import learning_rate
from fourreal.training.state import State, fresh_state, join_params
from fourreal.training.step import make_train_step
from fourreal.training.validation import make_validation


@dataclasses.dataclass(frozen=True)
class Start:
    """How a run starts."""

    resume: bool = False
    """go on from the run's newest checkpoint"""
    overwrite: bool = False
    """delete the run's folder first"""
    init_from: str | None = None
    """checkpoint whose weights (parameters only) a fresh run starts from"""


def run(config: TrainConfig, folder: Path, start: Start = Start()) -> None:
    """Trains; raises ValueError for a folder in use or a misfit, FloatingPointError when numbers stop being finite."""
    check_folder(folder, start)
    done = (Checkpoints(folder).latest() or 0) if start.resume else 0
    batches = grid_batches(config.data, start_step=done)
    batch = next(batches)
    spec = model_spec(config, batch["frames"].shape[-2])
    graph, _ = split_model(spec.model, spec.grid)
    forward = make_forward(graph)
    params, origin = initial_params(spec, config.seed, start.init_from if done == 0 else None)
    state = fresh_state(params, config)
    make_folder(folder, config, start)
    checkpoints = Checkpoints(folder)
    if done:
        state, origin = checkpoints.restore(shapes_of(state)), f"resumed after {done} steps"
    steps = CompiledSteps(make_train_step(forward, config), config)
    print(f"{config.name}: {origin}")
    print(describe_cost(steps, state, batch))
    validate = make_validation(forward, config)
    schedule = learning_rate(config.optim, config.steps)
    writer = MetricsWriter(folder, done)

    def finish_step(number: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches the numbers of a step (its last is `number`), which waits for it, and writes them."""
        values = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(list(values.values())).all():
            raise FloatingPointError(f"step {number}: loss {values['loss']}, gradient norm {values['grad_norm']}")
        progress.update()
        rate = config.data.batch_size * (progress.format_dict["rate"] or 0)
        progress.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.2f} grids/s", refresh=False)
        if number % config.log_every == 0:
            lr = float(schedule(number // config.optim.accumulate))
            writer.write(
                number, {"train/loss": values["loss"], "train/grad_norm": values["grad_norm"], "train/lr": lr}
            )

    def after_steps(number: int) -> None:
        """Validation and checkpoint after `number` steps, where they are due."""
        last = number == config.steps
        if last or (config.eval_every and number % config.eval_every == 0):
            numbers, sheet = validate(join_params(state["ema"], state["frozen"]))
            writer.write(number, numbers)
            writer.picture(number, "validation", sheet)
            (folder / "sheets").mkdir(exist_ok=True)
            Image.fromarray(sheet).save(folder / "sheets" / f"{number:07d}.png")
            shown = ", ".join(f"{name.split('_')[-1]} {numbers[name]:.2f}" for name in numbers if "psnr" in name)
            progress.write(f"step {number}: validation PSNR in dB: {shown}")
        if last or number % config.save_every == 0 or stop.asked:
            checkpoints.save(number, state)
            save_weights(folder / RUN_WEIGHTS, join_params(state["ema"], state["frozen"]), to_json(spec))

    waited, began = 0.0, time.monotonic()
    with StopSignal() as stop, tqdm(total=config.steps, initial=done, unit="step", dynamic_ncols=True) as progress:
        running = None
        try:
            for step in range(done, config.steps):
                state, metrics = steps(state, batch)
                if running:
                    finish_step(*running)
                running = (step + 1, metrics)
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                due = (
                    step + 1 == config.steps
                    or stop.asked
                    or any(every and (step + 1) % every == 0 for every in (config.eval_every, config.save_every))
                )
                if due:
                    finish_step(*running)
                    running = None
                    after_steps(step + 1)
                if stop.asked:
                    break
        except FloatingPointError as error:
            checkpoints.save(int(state["step"]), state)
            raise FloatingPointError(f"{error}; the last good parameters are saved in {folder}") from None
        finally:
            checkpoints.close()
            writer.close()
            batches.close()
    took = time.monotonic() - began
    trained = step + 1 - done if config.steps > done else 0
    print(
        f"{trained} steps in {took:.0f} s, {trained * config.data.batch_size / took:.2f} grids/s with validation, "
        f"{waited / took:.1%} of the time waiting for data"
    )
    print(
        f"stopped by a signal after {step + 1} steps; go on with --resume"
        if stop.asked
        else f"weights: {folder / RUN_WEIGHTS}"
    )


def check_folder(folder: Path, start: Start) -> None:
    """Raises for a run's folder that exists, or does not, against what the user said."""
    if start.resume and start.overwrite:
        raise ValueError("--resume and --overwrite contradict each other: give one")
    if start.resume and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"there is no run in {folder} to resume: leave --resume out")
    if folder.exists() and any(folder.iterdir()) and not (start.resume or start.overwrite):
        raise ValueError(f"{folder} exists: give --resume to go on, --overwrite to delete it, or another --out")
    if start.overwrite and folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is no run's folder (it has no {CONFIG}), so --overwrite leaves it: give another --out")


def make_folder(folder: Path, config: TrainConfig, start: Start) -> None:
    """Makes the run's folder with its config.json."""
    if start.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(to_json(config), indent=2) + "\n")


def model_spec(config: TrainConfig, size: int) -> ModelSpec:
    """What the run's weights will say about their model."""
    grid = config.grid if config.data.kind == "grid" else None
    return ModelSpec(config.model, grid, config.sigma, config.data.views, config.data.times, size)


class CompiledSteps:
    """The training step, compiled once for each kind of clip; the state is donated."""

    def __init__(self, train_step: Any, config: TrainConfig):
        self.function = train_step
        self.pixels_per_token = config.model.patch[1] * config.model.patch[2]
        self._programs: dict[str | None, jax.stages.Compiled] = {}

    def inputs(self, batch: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(arrays, static arguments) of a batch."""
        return {name: batch[name] for name in ("frames", "given")}, {n: batch[n] for n in ("context",) if n in batch}

    def program(self, state: State, batch: dict[str, Any]) -> jax.stages.Compiled:
        """The compiled step for such a batch."""
        arrays, static = self.inputs(batch)
        key = static.get("context")
        if key not in self._programs:
            jitted = jax.jit(lambda state, arrays: self.function(state, arrays, **static), donate_argnums=0)
            self._programs[key] = jitted.lower(state, arrays).compile()
        return self._programs[key]

    def __call__(self, state: State, batch: dict[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        return self.program(state, batch)(state, jax.device_put(self.inputs(batch)[0]))


def describe_cost(steps: CompiledSteps, state: State, batch: dict[str, Any]) -> str:
    """Parameters, tokens, FLOPs a step and compiled memory, in one line."""
    arrays, static = steps.inputs(batch)
    flops = matmul_flops(lambda state, arrays: steps.function(state, arrays, **static), state, arrays)
    size = {part: sum(leaf.size for leaf in jax.tree.leaves(state[part])) for part in ("params", "frozen")}
    memory = compiled_bytes(steps.program(state, batch))["total"]
    tokens = int(np.prod(batch["frames"].shape[:-1])) // steps.pixels_per_token
    return (
        f"{size['params'] / 1e6:.2f} M parameters train, {size['frozen'] / 1e6:.2f} M are frozen; {tokens} tokens and "
        f"{flops / 1e9:.1f} GFLOP a step; {memory / 2**20:.0f} MiB of memory"
    )


class StopSignal:
    """Notes SIGTERM, so that the loop can save and stop between two steps."""

    def __enter__(self) -> "StopSignal":
        self.asked = False
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)
