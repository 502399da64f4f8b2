"""The training loop. `run(config, folder)` trains in a run's folder and leaves its weights there.

Order of operations; resuming relies on it:
  1. step s is dispatched on batch s (position = step, so nothing about the data is stored)
  2. batch s + 1 is taken from the prefetcher and the numbers of step s - 1 are fetched while step s runs
  3. after s + 1 steps: metrics, then evaluators, then checkpoint, each at its own interval
So a checkpoint of n steps holds everything that comes of the first n batches, and the device never waits for the host.
SIGTERM and Ctrl-C save and stop; they write no weights, which a later save does. Steps with numbers that are not finite are
skipped, or undone with their data, within a budget (`bad_steps.py`); beyond it the run saves and stops. A write that fails
stops the run; its checkpoints stay.
A folder has one run at a time.

Several processes run the same loop in step. Process 0 alone decides about the folder, writes and prints; checkpoints are
written by all. A SIGTERM to any of them stops all after the same step.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from fourreal.checkpoints.specs import RUN_WEIGHTS
from fourreal.errors import CopiesDiffer, Damaged, LossNotFinite, TrainingStopped
from fourreal.host.processes import ALONE, Peers
from fourreal.host.retry import errno_of
from fourreal.host.signals import StopSignal
from fourreal.host.watchdog import Watchdog
from fourreal.media.sheet import stack_sheets
from fourreal.parallel.mesh import make_mesh
from fourreal.parallel.replicas import odd_processes
from fourreal.training.bad_steps import TooManyBad
from fourreal.training.compiled import kept_programs
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import learning_rate
from fourreal.training.prepare import Evaluator, Run, prepare
from fourreal.training.profile import Profile
from fourreal.training.run_folder import COMPILED, Start
from fourreal.training.storage import open_storage
from fourreal.training.validation import LATENT_ERROR


def run(
    config: TrainConfig,
    folder: Path,
    start: Start = Start(),
    peers: Peers = ALONE,
    evaluators: Sequence[Evaluator] = (),
) -> None:
    """Trains; `evaluators` judge the parameters before each validation.

    Raises UserError for a folder in use or a misfit, LossNotFinite when numbers stop being finite and KeyboardInterrupt
    after Ctrl-C, both after saving, TrainingStopped for a read or write that fails, as on a full disk.
    """
    began = time.time()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal(peers))
        if not peers.first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        watchdog = Watchdog(config.watchdog_minutes, peers.name(peers.index), config.hang, peers.tell_of_hang)
        stack.enter_context(watchdog)
        storage = stack.enter_context(open_storage(folder, peers))
        stack.enter_context(jax.set_mesh(make_mesh(config.mesh)))
        stack.enter_context(kept_programs(folder / COMPILED))
        prepared = prepare(config, storage, start, peers, watchdog, evaluators, began)
        try:
            train(prepared, stop)
        except (OSError, Damaged, CopiesDiffer) as error:
            done = prepared.checkpoints.done or 0
            raise TrainingStopped(
                f"{error}; once that is mended, --resume goes on after {done} steps", errno_of(error)
            ) from error
        watchdog.at(prepared.done, "waiting for the other processes")
        peers.finish()
    if stop.interrupted:
        raise KeyboardInterrupt


def train(run: Run, stop: StopSignal) -> None:
    """The loop, in the order that the module's docstring gives."""
    stop.training = True
    config, first, began, dispatched = run.config, run.done, time.monotonic(), itertools.count(1)
    with tqdm(
        total=config.steps, initial=first, unit="step", dynamic_ncols=True, disable=not run.peers.first
    ) as progress:
        profile = Profile(run.storage.work / "profile", first, config.profile_steps)
        run.pace.lap("starting")
        try:
            while True:
                try:
                    run_steps(run, stop, dispatched, profile, progress)
                    break
                except TooManyBad as error:
                    go_back(run, error, progress)
            if run.done == first:
                run.save()  # a run that was killed between its last checkpoint and its weights
        except LossNotFinite as error:
            run.save()
            raise LossNotFinite(f"{error}; the last good parameters are saved in {run.storage.folder}") from None
        finally:
            profile.close()
            run.close()
    if run.local:
        run.local.drop()  # what is newest is in the run's folder
    took, trained = time.monotonic() - began, run.done - first
    print(
        f"{trained} steps in {took:.0f} s, {trained * config.data.batch_size / took:.2f} grids/s with validation, "
        f"{run.pace.all_waited / took:.1%} of the time waiting for data"
    )
    weights = run.storage.folder / RUN_WEIGHTS
    if run.done == config.steps:
        print(f"weights: {weights}")
    else:
        print(f"stopped, go on with --resume; the next save writes {weights} (--resume --steps {run.done} that alone)")


def run_steps(run: Run, stop: StopSignal, dispatched: Iterator[int], profile: Profile, progress: tqdm) -> None:
    """The steps from `run.done` on, in the order above. Raises TooManyBad where more are not finite than may be skipped.

    `dispatched` counts the steps of this process, also those that are undone.
    """
    config, running = run.config, None
    while run.done < config.steps:
        number = run.done + 1
        run.watchdog.at(number, "step")
        profile.before(number)
        cost = run.steps.cost(run.state, run.batch)
        run.state, metrics = run.steps(run.state, run.batch)
        profile.after(number, metrics)
        run.done = number
        run.check()
        run.watchdog.at(number, "waiting for data")
        asked = time.monotonic()
        run.batch = next(run.batches)
        run.pace.waited(time.monotonic() - asked)
        run.watchdog.at(number, "step")
        if running:
            finish_step(run, *running, progress)
        last, stopped = number == config.steps, stop.reached(next(dispatched))
        evaluating = last or (config.eval_every and number % config.eval_every == 0)
        saving = last or stopped or number % config.save_every == 0 or run.overdue()
        locally = run.local and not saving and number % config.local_every == 0
        checking = run.digests and (saving or locally or number % config.replicas_every == 0)
        found = run.digests(run.state) if checking else None
        running = (number, metrics, cost, found)
        if evaluating or saving or locally:
            finish_step(run, *running, progress)
            running = None
        if evaluating:
            evaluate(run, progress)
            run.pace.lap("validation")
        if stopped and not last:
            progress.write(f"stopping after {number} steps: {run.expected_save()}")
        if saving:
            run.save(weights=last or not stopped)
            run.bad = 0
        elif locally:
            run.save_locally()
        if saving or locally:
            run.pace.lap("saving")
        if stopped:
            return


def finish_step(
    run: Run, number: int, metrics: dict[str, jax.Array], cost: tuple[int, int], found: jax.Array | None, progress: tqdm
) -> None:
    """Fetches the numbers of a step (after it, `number` steps are done), which waits for it, and writes them and its cost.

    `found`: the digests of the state after it, if these were asked for. Raises TooManyBad, or CopiesDiffer.
    """
    if found is not None and (odd := odd_processes(np.asarray(found))):
        names = ", ".join(run.peers.name(index) for index in odd)
        raise CopiesDiffer(
            f"step {number}: {names} holds other parameters than the copies of them: a faulty chip, or network"
        )
    config, values = run.config, {name: float(value) for name, value in metrics.items()}
    progress.update()
    if not np.isfinite(list(values.values())).all():
        run.bad += 1
        loss, gradient, update = values["loss"], values["grad_norm"], values["update_norm"]
        line = f"step {number}: loss {loss}, gradient norm {gradient}, update norm {update}"
        if run.bad > config.bad_steps.skip:
            raise TooManyBad(line, number)
        progress.write(f"{line}: skipped, {run.bad} of {config.bad_steps.skip} before the next checkpoint")
    run.pace.step(*cost)
    rate = config.data.batch_size * (progress.format_dict["rate"] or 0)
    progress.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.2f} grids/s", refresh=False)
    if number % config.log_every:
        return
    if run.writer:
        lr = float(learning_rate(config.optim, config.steps)((number - 1) // config.optim.accumulate))
        run.writer.write(number, {f"train/{name}": value for name, value in {**values, "lr": lr}.items()})
    run.pace.log(number)


def go_back(run: Run, error: TooManyBad, progress: tqdm) -> None:
    """To the last checkpoint, and past the data behind it. Raises LossNotFinite without one, or where that did not help."""
    run.watchdog.at(run.done, "restoring")
    run.checkpoints.check(wait=True)
    done = run.checkpoints.done
    if done is None or run.left_out.times(done) >= run.config.bad_steps.back:
        tried = "there is no checkpoint to go back to" if done is None else f"going back to step {done} did not help"
        raise LossNotFinite(f"{error}; {tried}" if run.config.bad_steps.back else str(error))
    run.go_back(error.step)
    progress.write(
        f"{error}: back to the checkpoint of {done} steps, without the data of the {error.step - done} behind it"
    )
    progress.n = done


def evaluate(run: Run, progress: tqdm) -> None:
    """Calls the evaluators; process 0 writes their numbers as one line, and their sheets, below each other, as one picture."""
    run.watchdog.at(run.done, "validation")
    params, numbers, sheets = run.average(), {}, []
    for evaluator in run.evaluators:
        found, sheet = evaluator(params, run.done)
        numbers |= found
        sheets += [] if sheet is None else [sheet]
    if not run.writer:
        return
    run.writer.write(run.done, numbers)
    if sheets:
        sheet = stack_sheets(sheets)
        run.writer.picture(run.done, "validation", sheet)
        (run.storage.work / "sheets").mkdir(exist_ok=True)
        path = run.storage.work / "sheets" / f"{run.done:07d}.png"
        Image.fromarray(sheet).save(path.with_suffix(".tmp"), "PNG")
        path.with_suffix(".tmp").replace(path)
    shown = ", ".join(f"{name.split('_')[-1]} {value:.2f}" for name, value in numbers.items() if "psnr" in name)
    shown = f"PSNR in dB: {shown}" if shown else f"error of latents {numbers[LATENT_ERROR]:.4f}"
    progress.write(f"step {run.done}: validation {shown}")
