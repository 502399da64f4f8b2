"""The training loop. `run(config, folder)` trains in a run's folder and leaves its weights there.

Order of operations; resuming relies on it:
  1. step s is dispatched on batch s (position = step, so nothing about the data is stored)
  2. batch s + 1 is taken from the prefetcher and the numbers of step s - 1 are fetched while step s runs
  3. after s + 1 steps: metrics, then validation, then checkpoint, each at its own interval
So a checkpoint of n steps holds everything that comes of the first n batches, and the device never waits for the host.
SIGTERM, Ctrl-C and numbers that are not finite save and stop. A write that fails stops the run; its checkpoints stay.

The state comes from, in this order: the run's own newest whole checkpoint (`resume`), the weights named by `init_from`
(parameters only), a fresh start. Nothing is written before all of it is known to work. A folder has one run at a time.

Several processes run the same loop in step. Process 0 alone decides about the folder, writes and prints; checkpoints are
written by all. A SIGTERM to any of them stops all after the same step.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from tqdm import tqdm

from fourreal.config import TrainConfig
from fourreal.data.builders.grids import data_set_hash
from fourreal.data.pipeline import grid_batches
from fourreal.models.build import make_forward, split_model
from fourreal.models.checkpoints import RUN_WEIGHTS, ModelSpec
from fourreal.models.kernels import resolve_kernel
from fourreal.models.weights import CONFIG, read_config, save_weights
from fourreal.parallel import layout
from fourreal.parallel.distributed import ALONE, Peers
from fourreal.parallel.mesh import describe, make_mesh
from fourreal.serialize import differences, from_json, to_json
from fourreal.training.checkpoint import Checkpoints
from fourreal.training.cost import compiled_bytes, jaxpr_flops
from fourreal.training.initialize import initial_params
from fourreal.training.metrics import LOG, MetricsWriter, read_metrics
from fourreal.training.optimizer import learning_rate
from fourreal.training.profile import Profile
from fourreal.training.state import State, fresh_state, join_params
from fourreal.training.step import CAMERAS, make_train_step
from fourreal.training.validation import make_validation
from fourreal.training.watchdog import Watchdog

# What a resumed run may change, also everything below a name; the rest decides what the steps compute.
FREE = (
    "name",
    "steps",
    "eval_every",
    "eval_grids",
    "save_every",
    "log_every",
    "profile_steps",
    "watchdog_minutes",
    "data.source",
    "data.threads",
    "data.prefetch",
    "model.remat",
    "model.unroll",
    "optim.microbatch",
    "mesh",
    "attention",
)
INIT_FROM = "init_from.txt"  # a run's file that names the weights it started from
DATA = "data.sha256"  # and the one that tells its data set from others


@dataclasses.dataclass(frozen=True)
class Start:
    """How a run starts."""

    resume: bool = False
    """go on from the run's newest checkpoint"""
    overwrite: bool = False
    """delete the run's folder first"""
    init_from: str | None = None
    """checkpoint whose weights (parameters only) a fresh run starts from"""


def run(config: TrainConfig, folder: Path, start: Start = Start(), peers: Peers = ALONE) -> None:
    """Trains. Raises ValueError for a folder in use or a misfit, FloatingPointError when numbers stop being finite,
    KeyboardInterrupt after Ctrl-C, both after saving, OSError for a write that fails, as on a full disk."""
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal(peers))
        if not peers.first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        watchdog = stack.enter_context(Watchdog(config.watchdog_minutes, peers.name(peers.index)))
        peers.of_first("lock", lambda: stack.enter_context(locked(folder)))
        stack.enter_context(jax.set_mesh(make_mesh(config.mesh)))
        prepared = prepare(config, folder, start, peers, watchdog)
        try:
            train(prepared, stop)
        except OSError as error:
            done = prepared.checkpoints.done or 0
            raise OSError(f"{error}; once that is mended, --resume goes on after {done} steps") from error
    peers.finish()
    if stop.interrupted:
        raise KeyboardInterrupt


@dataclasses.dataclass
class Run:
    """Everything that the loop needs; `state` and `done`, the steps behind it, move."""

    config: TrainConfig
    folder: Path
    spec: ModelSpec
    state: State
    done: int
    batches: Iterator[dict[str, Any]]
    batch: dict[str, Any]
    steps: "CompiledSteps"
    validate: Callable
    checkpoints: Checkpoints
    writer: MetricsWriter | None
    peers: Peers
    watchdog: Watchdog

    def average(self) -> dict[str, Any]:
        """The parameters that sampling uses."""
        return join_params(self.state["ema"], self.state["frozen"])

    def save(self) -> None:
        """Starts a checkpoint of all that is written by now, and writes the weights."""
        self.watchdog.at(self.done, "saving")
        if self.writer:
            self.writer.sync()
        self.checkpoints.save(self.done, self.state)
        save_weights(self.folder / RUN_WEIGHTS, self.average(), to_json(self.spec))
        self.peers.exchange("saved")

    def close(self) -> None:
        """Stops the reading of data and waits for saves under way, whichever of these fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            if self.writer:
                stack.callback(self.writer.close)
            stack.callback(self.batches.close)


def prepare(
    config: TrainConfig, folder: Path, start: Start, peers: Peers = ALONE, watchdog: Watchdog | None = None
) -> Run:
    """Reads, builds and compiles what a run needs, and only then makes or takes over its folder."""
    if config.model.text_width is not None:
        raise ValueError(
            f"model.text_width is {config.model.text_width}: data sets of grids hold no text, leave it out"
        )
    watchdog = watchdog or Watchdog(0, "")
    watchdog.at(0, "looking at the run's folder")
    peers.of_first("folder", lambda: check_folder(config, folder, start))
    checkpoints = Checkpoints(folder, peers) if start.resume else None
    done = (checkpoints.done or 0) if checkpoints else 0
    init_from = start.init_from
    if start.resume and not done:
        peers.of_first("log", lambda: check_log(folder))
        print(f"there is no checkpoint in {folder} yet: starting from the beginning")
        if init_from is None and (folder / INIT_FROM).is_file():
            init_from = (folder / INIT_FROM).read_text()
    if config.trains != "all" and not done and init_from is None:
        raise ValueError(
            f"trains is '{config.trains}': name the base that stays frozen with --init-from, as runs/nano_base"
        )
    grid = config.grid if config.data.kind == "grid" else None
    part = layout.share_of_batch(config.data.kind, config.data.batch_size)
    batches = grid_batches(config.data, start_step=done, process=part[0], process_count=part[1])
    watchdog.at(done, "reading the first batch")
    batch = next(batches)
    size = batch["frames"].shape[-2]
    spec = ModelSpec(config.model, grid, config.data.views, config.data.times, size, config.sigma.shift)
    mesh = jax.sharding.get_mesh()
    kernel = resolve_kernel(config.attention, mesh.devices.flat[0].platform, config.model.head_size, config.model.dtype)
    graph, shapes = split_model(spec.model, spec.grid, kernel)
    layout.check_widths(config.model)
    forward = make_forward(graph)
    validate = make_validation(forward, config)
    watchdog.at(done, "restoring" if done else "initializing")
    if done:
        shapes = jax.eval_shape(lambda params: fresh_state(params, config), shapes)
        state = checkpoints.restore(layout.placed_shapes(shapes))
        origin = f"resumed after {done} steps"
    else:
        params, origin = initial_params(spec, config.seed, init_from)
        state = layout.jit_placed(lambda params: fresh_state(params, config), params)(params)
        del params
    steps = CompiledSteps(make_train_step(forward, config), config, part)
    watchdog.at(done, "compiling")
    print(f"{config.name}: {origin}; mesh {describe(mesh.shape)}; {kernel}")
    print(describe_cost(steps, state, batch))
    peers.of_first("make", lambda: make_folder(config, folder, start.overwrite, None if done else init_from))
    checkpoints = checkpoints or Checkpoints(folder, peers)
    writer = MetricsWriter(folder, done) if peers.first else None
    return Run(config, folder, spec, state, done, batches, batch, steps, validate, checkpoints, writer, peers, watchdog)


def train(run: Run, stop: "StopSignal") -> None:
    """The loop, in the order that the module's docstring gives."""
    stop.training = True
    config, first, waited, began = run.config, run.done, 0.0, time.monotonic()
    with tqdm(
        total=config.steps, initial=first, unit="step", dynamic_ncols=True, disable=not run.peers.first
    ) as progress:
        running, profile = None, Profile(run.folder / "profile", first, config.profile_steps)
        try:
            for number in range(first + 1, config.steps + 1):
                run.watchdog.at(number, "step")
                profile.before(number)
                run.state, metrics = run.steps(run.state, run.batch)
                profile.after(number, metrics)
                run.done = number
                run.checkpoints.check()
                run.watchdog.at(number, "waiting for data")
                asked = time.monotonic()
                run.batch = next(run.batches)
                waited += time.monotonic() - asked
                run.watchdog.at(number, "step")
                if running:
                    finish_step(run, *running, progress)
                running = (number, metrics)
                stopping = stop.reached(number - first) or number == config.steps
                evaluating = number == config.steps or (config.eval_every and number % config.eval_every == 0)
                saving = stopping or number % config.save_every == 0
                if evaluating or saving:
                    finish_step(run, *running, progress)
                    running = None
                if evaluating:
                    evaluate(run, progress)
                if saving:
                    run.save()
                if stopping:
                    break
            if run.done == first:
                run.save()  # a run that was killed between its last checkpoint and its weights
        except FloatingPointError as error:
            run.save()
            raise FloatingPointError(f"{error}; the last good parameters are saved in {run.folder}") from None
        finally:
            profile.close()
            run.close()
    took, trained = time.monotonic() - began, run.done - first
    print(
        f"{trained} steps in {took:.0f} s, {trained * config.data.batch_size / took:.2f} grids/s with validation, "
        f"{waited / took:.1%} of the time waiting for data"
    )
    print(
        f"weights: {run.folder / RUN_WEIGHTS}" + ("" if run.done == config.steps else "; stopped, go on with --resume")
    )


def finish_step(run: Run, number: int, metrics: dict[str, jax.Array], progress: tqdm) -> None:
    """Fetches the numbers of a step (after it, `number` steps are done), which waits for it, and writes them."""
    config, values = run.config, {name: float(value) for name, value in metrics.items()}
    if not np.isfinite(list(values.values())).all():
        raise FloatingPointError(f"step {number}: loss {values['loss']}, gradient norm {values['grad_norm']}")
    progress.update()
    rate = config.data.batch_size * (progress.format_dict["rate"] or 0)
    progress.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.2f} grids/s", refresh=False)
    if run.writer and number % config.log_every == 0:
        lr = float(learning_rate(config.optim, config.steps)((number - 1) // config.optim.accumulate))
        run.writer.write(number, {f"train/{name}": value for name, value in {**values, "lr": lr}.items()})


def evaluate(run: Run, progress: tqdm) -> None:
    """Validates the average of the parameters: numbers, and a sheet of sampled grids beside the truth."""
    run.watchdog.at(run.done, "validation")
    numbers, sheet = run.validate(run.average())
    if not run.writer:
        return
    run.writer.write(run.done, numbers)
    run.writer.picture(run.done, "validation", sheet)
    (run.folder / "sheets").mkdir(exist_ok=True)
    path = run.folder / "sheets" / f"{run.done:07d}.png"
    Image.fromarray(sheet).save(path.with_suffix(".tmp"), "PNG")
    path.with_suffix(".tmp").replace(path)
    shown = ", ".join(f"{name.split('_')[-1]} {value:.2f}" for name, value in numbers.items() if "psnr" in name)
    progress.write(f"step {run.done}: validation PSNR in dB: {shown}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder where there is none, and lets no other process train in it for as long as this one lives.

    Raises ValueError where another one does. A folder that is still empty at the end goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"another process is training in {folder}: wait for it, or give another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
        os.close(descriptor)


def check_folder(config: TrainConfig, folder: Path, start: Start) -> None:
    """Raises for a run's folder that exists, or does not, or is of another run, against what the user said."""
    if start.resume and start.overwrite:
        raise ValueError("--resume and --overwrite contradict each other: give one")
    used = folder.is_dir() and any(folder.iterdir())
    if start.resume:
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"there is no run in {folder} to resume: leave --resume out")
        stored = to_json(from_json(TrainConfig, read_config(folder)))  # with the settings that are newer than the run
        changed = {
            name: pair for name, pair in differences(stored, to_json(config)).items() if not name.startswith(FREE)
        }
        if changed:
            name, (there, here) = next(iter(changed.items()))
            raise ValueError(
                f"{folder} was trained with {name} {there}, not {here}: resume with the settings it was started with"
            )
        known = folder / DATA
        if known.is_file() and known.read_text() != data_set_hash(config.data.source):
            raise ValueError(
                f"{folder} was trained on another data set than the one in {config.data.source}: name that one with "
                "--data.source, or start again with --overwrite"
            )
        if stored["steps"] != config.steps and config.optim.final_lr != 1:
            print(
                f"{config.steps} steps instead of {stored['steps']}: the learning rate follows the new schedule from here"
            )
    elif used and not start.overwrite:
        raise ValueError(f"{folder} exists: give --resume to go on, --overwrite to delete it, or another --out")
    elif used:
        try:
            from_json(TrainConfig, read_config(folder))
        except (ValueError, FileNotFoundError):
            raise ValueError(f"{folder} is no run's folder, so --overwrite leaves it: give another --out") from None


def check_log(folder: Path) -> None:
    """Raises ValueError where the log goes further than a run can without a whole checkpoint, so that none is lost unseen.

    The first save ends before the second begins, so it goes to the second at most.
    """
    done = max((line["step"] for line in read_metrics(folder / LOG)), default=0)
    if done > 2 * read_config(folder)["save_every"]:
        raise ValueError(
            f"{folder} was trained for {done} steps, but its checkpoints are gone: put a copy back, or start again with "
            "--overwrite"
        )


def make_folder(config: TrainConfig, folder: Path, overwrite: bool, init_from: str | None) -> None:
    """Fills the run's folder with its config.json and where it starts from; under `overwrite`, empties it first."""
    if overwrite:
        for entry in folder.iterdir():  # not the folder itself: it may be a link to another disk
            if entry.name != CONFIG:  # so that it stays a run's folder if this process is killed now
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if init_from:
        (folder / INIT_FROM).write_text(init_from)
    (folder / f"{CONFIG}.tmp").write_text(json.dumps(to_json(config), indent=2) + "\n")
    (folder / f"{CONFIG}.tmp").replace(folder / CONFIG)
    (folder / DATA).write_text(data_set_hash(config.data.source))


class CompiledSteps:
    """The training step on the ambient mesh, compiled once for each kind of clip; the state is donated.

    It takes this process's `part`, (which, of how many), of every batch.
    """

    def __init__(self, train_step: Any, config: TrainConfig, part: tuple[int, int] = (0, 1)):
        self.function, self.kind, self.part = train_step, config.data.kind, part
        self.pixels_per_token = config.model.patch[1] * config.model.patch[2]
        self.arrays = ("frames", "given", *(CAMERAS if config.model.cameras else ()))
        self._programs: dict[str | None, tuple[jax.stages.Compiled, int]] = {}

    def inputs(self, batch: dict[str, Any]) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, str]]:
        """(the placed shapes of the arrays of the whole batch, static arguments)."""
        arrays = {name: batch[name] for name in self.arrays}
        return layout.batch_shapes(arrays, self.kind, self.part[1]), {n: batch[n] for n in ("context",) if n in batch}

    def program(self, state: State, batch: dict[str, Any]) -> tuple[jax.stages.Compiled, int]:
        """The compiled step for such a batch, and its FLOPs."""
        shapes, static = self.inputs(batch)
        key = static.get("context")
        if key not in self._programs:
            traced = trace_step(self.function, state, shapes, **static)
            self._programs[key] = traced.lower().compile(), jaxpr_flops(traced.jaxpr.jaxpr)
        return self._programs[key]

    def __call__(self, state: State, batch: dict[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        shapes, _ = self.inputs(batch)
        compiled, _ = self.program(state, batch)
        return compiled(state, layout.put_batch(batch, shapes, self.part))


def trace_step(train_step: Callable, state: State, batch: dict[str, jax.ShapeDtypeStruct], **static: str):
    """The traced step for a placed state, or its shapes, and batches of such shapes; the state is donated."""
    everywhere = NamedSharding(jax.sharding.get_mesh(), P())
    jitted = jax.jit(
        lambda state, arrays: train_step(state, arrays, **static),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), everywhere),
    )
    return jitted.trace(state, batch)


def describe_cost(steps: CompiledSteps, state: State, batch: dict[str, Any]) -> str:
    """Parameters, tokens, FLOPs a step and compiled memory, in one line."""
    arrays, _ = steps.inputs(batch)
    compiled, flops = steps.program(state, batch)
    size = {part: sum(leaf.size for leaf in jax.tree.leaves(state[part])) for part in ("params", "frozen")}
    memory = compiled_bytes(compiled)["total"]
    tokens = int(np.prod(arrays["frames"].shape[:-1])) // steps.pixels_per_token
    return (
        f"{size['params'] / 1e6:.2f} M parameters train, {size['frozen'] / 1e6:.2f} M are frozen; {tokens} tokens and "
        f"{flops / 1e9:.1f} GFLOP a step; {memory / 2**20:.0f} MiB of memory a device"
    )


class StopSignal:
    """Notes SIGTERM and the first Ctrl-C, so that the loop can save and stop between two steps.

    The second Ctrl-C stops at once, and so do both before training, when there is nothing to save. Among several processes
    JAX hears the SIGTERM of each and finds the step after which all can stop; the first step, if it comes before training.
    """

    def __init__(self, peers: Peers = ALONE):
        self._alone = peers.count == 1

    def __enter__(self) -> "StopSignal":
        self.asked = self.interrupted = self.training = False
        noted = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
        self._before = {sign: signal.signal(sign, self._note) for sign in noted}
        return self

    def reached(self, steps: int) -> bool:
        """Whether to stop now; asked once after every step of this training, `steps` so far."""
        self.asked = self.asked if self._alone else multihost_utils.reached_preemption_sync_point(steps)
        return self.asked

    def _note(self, sign: int, _: Any) -> None:
        if sign == signal.SIGINT and (self.interrupted or not self.training):
            raise KeyboardInterrupt
        if not self.training:
            raise SystemExit(128 + sign)
        self.asked, self.interrupted = True, sign == signal.SIGINT
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)  # which JAX tells the others

    def __exit__(self, *_: Any) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)
