"""What a run needs before its first step: data, model, state, compiled programs and, once all these work, its folder.

The state comes from, in this order: the run's own newest whole checkpoint (`resume`), the weights named by `init_from`
(parameters only), a fresh start. Nothing is written before all of it is known to work.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fourreal.checkpoints.specs import ModelSpec
from fourreal.codecs import Codec
from fourreal.data.batches import Batches
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.errors import UserError
from fourreal.host.processes import ALONE, Peers
from fourreal.host.watchdog import Watchdog
from fourreal.models.build import Params, model_table, split_model
from fourreal.models.fusions import Base, Fused
from fourreal.nn.kernels import XLA, resolve_kernel
from fourreal.parallel import layout
from fourreal.parallel.chips import chip_of
from fourreal.parallel.mesh import EXAMPLE_AXES, describe, repeats
from fourreal.parallel.replicas import make_digests
from fourreal.serialize import to_json
from fourreal.training.bad_steps import LeftOut
from fourreal.training.compiled import CompiledSteps, describe_cost
from fourreal.training.config import TrainConfig
from fourreal.training.export import Export
from fourreal.training.initialize import initial_params
from fourreal.training.local import LocalCheckpoints
from fourreal.training.log import MetricsWriter
from fourreal.training.orbax import Checkpoints
from fourreal.training.pace import Pace
from fourreal.training.run_folder import INIT_FROM, Start, check_folder, check_log, identity_of, make_folder
from fourreal.training.state import (
    State,
    checkpoint_bytes,
    fresh_state,
    fresh_training,
    frozen_dtypes,
    join_params,
    split_params,
)
from fourreal.training.step import fusion_of, make_train_step
from fourreal.training.storage import Storage
from fourreal.training.validation import make_validation
from fourreal.training.wandb import WandbLog, check_wandb


class Evaluator(Protocol):
    """What judges the average of the parameters in the midst of a training: `(params, done) -> (numbers, sheet)`.

    `done` is the number of steps behind them. `numbers` go to the log under their names, `sheet`, if there is one, is a
    picture, uint8 [h w 3]. Every process calls it.
    """

    def __call__(self, params: Params, done: int) -> tuple[dict[str, float], np.ndarray | None]: ...


@dataclasses.dataclass
class Run:
    """Everything that the loop needs; `state` and `done`, the steps behind it, move."""

    config: TrainConfig
    storage: Storage
    spec: ModelSpec
    state: State
    done: int
    batches: Iterator[dict[str, Any]]
    batch: dict[str, Any]
    steps: CompiledSteps
    evaluators: Sequence[Evaluator]
    checkpoints: Checkpoints
    local: LocalCheckpoints | None
    export: Export
    writer: MetricsWriter | None
    pace: Pace
    peers: Peers
    watchdog: Watchdog
    data_from: Callable[[int], Iterator[dict[str, Any]]]
    """the batches from a position on"""
    left_out: LeftOut
    wandb: WandbLog | None
    digests: Callable[[State], jax.Array] | None
    """of a state's copies along the mesh's axis data; None: there are none, or nobody asks"""
    bad: int = 0
    """steps that were skipped since the last checkpoint"""
    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def average(self) -> dict[str, Any]:
        """The parameters that sampling uses."""
        return join_params(self.state["ema"], self.state["frozen"])

    def save(self, weights: bool = True) -> None:
        """Starts a checkpoint of all that is written by now and, with `weights`, their export."""
        self.watchdog.at(self.done, "saving")
        self.saved_at = time.monotonic()
        if self.writer:
            self.writer.sync()
        self.checkpoints.save(self.done, self.state)
        if weights:
            self.export.start(self.state["ema"], self.state["frozen"])
        self.peers.exchange("saved")

    def save_locally(self) -> None:
        """Starts a checkpoint on the hosts' own disks, once there is one in the run's folder."""
        self.watchdog.at(self.done, "saving")
        self.checkpoints.check()
        if self.peers.of_first("sealed one", lambda: self.checkpoints.done is not None):
            self.local.save(self.done, self.state, self.bad)

    def go_back(self, bad: int) -> None:
        """To the newest checkpoint, with the data of the steps from there to step `bad` left out."""
        self.batches.close()
        if self.local:
            self.local.drop()  # first: none may be left whose data is left out
        fixed = {name: self.state[name] for name in ("frozen", "codec")}
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        self.state = fixed  # what is not needed any more leaves room
        self.state = self.checkpoints.restore(shapes | {"frozen": {}}) | fixed
        done = self.checkpoints.done
        self.left_out.add(done, bad - done)
        self.done, self.bad = done, 0
        self.batches = self.data_from(done + self.left_out.offset(done))
        self.batch = next(self.batches)
        if self.writer:
            self.writer.close()
            self.writer = MetricsWriter(self.storage.work, done, also=self.wandb)
        self.pace.go_back(done)

    def overdue(self) -> bool:
        """Whether `save_minutes` have gone by since the last save, for all processes by the clock of the first."""
        limit = 60 * self.config.save_minutes
        return limit > 0 and self.peers.of_first("overdue", lambda: time.monotonic() - self.saved_at >= limit)

    def expected_save(self) -> str:
        """How large a checkpoint is, and how long the last one took."""
        took = self.checkpoints.seconds
        return f"a checkpoint of {checkpoint_bytes(self.state) / 1e6:,.1f} MB" + (
            f", the last one took {took:.1f} s" if took else ""
        )

    def check(self) -> None:
        """Raises OSError if a save under way has failed."""
        self.checkpoints.check()
        self.export.check()

    def close(self) -> None:
        """Stops the reading of data and waits for saves under way, whichever of these fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.storage.sync)
            stack.callback(self.checkpoints.close)
            if self.local:
                stack.callback(self.local.close)
            stack.callback(self.export.close)
            if self.wandb:
                stack.callback(self.wandb.close)
            stack.callback(self.pace.close)
            if self.writer:
                stack.callback(self.writer.close)
            stack.callback(self.batches.close)


def prepare(
    config: TrainConfig,
    storage: Storage,
    start: Start,
    peers: Peers = ALONE,
    watchdog: Watchdog | None = None,
    evaluators: Sequence[Evaluator] = (),
    since: float | None = None,
) -> Run:
    """Reads, builds and compiles what a run needs, and only then makes or takes over its folder.

    `evaluators` are called before the validation, which every run has. `since` is when the process began; None: now.
    """
    since = time.time() if since is None else since
    if config.model.channels != config.codec.channels:
        raise UserError(
            f"model.channels is {config.model.channels}: the codec '{config.codec.kind}' has {config.codec.channels}"
        )
    if config.codec.factors[1] > 1 and any(getattr(each, "moved", False) for each in config.model.conditions):
        raise UserError(
            f"hints:moved=true are made of pixels, and the codec '{config.codec.kind}' makes latents of them: leave moved out"
        )
    if config.wandb and peers.first:
        check_wandb()
    watchdog = watchdog or Watchdog(0, "")
    folder, work = storage.folder, storage.work
    watchdog.at(0, "looking at the run's folder")
    peers.of_first("folder", lambda: check_folder(config, folder, start))
    if start.resume:
        peers.of_first("fetched", storage.fetch)
    identity = peers.of_first("identity", lambda: identity_of(folder, start.resume))
    open_checkpoints = functools.partial(Checkpoints, folder, peers, config.keep_every, storage.before_seal)
    checkpoints = open_checkpoints() if start.resume else None
    done = (checkpoints.done or 0) if checkpoints else 0
    left_out = LeftOut(work, bool(done), peers)
    local, bad = None, 0
    if config.local_every:
        local = LocalCheckpoints(
            config.local_folder, folder, lambda: f"{identity} {left_out}", peers, storage.before_seal
        )
    init_from = start.init_from
    if start.resume and not done:
        peers.of_first("log", lambda: check_log(folder))
        print(f"there is no checkpoint in {folder} yet: starting from the beginning")
        if init_from is None and (folder / INIT_FROM).is_file():
            init_from = (folder / INIT_FROM).read_text()
    if config.trains != "all" and not done and init_from is None:
        raise UserError(
            f"trains is '{config.trains}': name the base that stays frozen with --init-from, as runs/nano_base"
        )
    table, (_, shapes) = model_table(config.model, config.grid), split_model(config.model, config.grid)
    if not jax.tree.leaves(split_params(shapes, table, config.trains)[0]):
        raise UserError(
            f"trains is '{config.trains}' with grid.fusion {config.grid.fusion}, which has no sync layers, so nothing trains: "
            "give soft or hard, or --grid.matched"
        )
    check_batch(config)
    layout.check_widths(config.model)
    if done:
        watchdog.at(done, "restoring")
        placed = layout.placed_shapes(jax.eval_shape(lambda params: fresh_state(params, config), shapes), table)
        if found := local and local.restore(placed, done):
            done, state, bad = found
            state |= {"frozen": checkpoints.restore_frozen(placed["frozen"])}
            origin = f"resumed after {done} steps, from the hosts' own disks"
        else:
            state = checkpoints.restore(placed)
            done = checkpoints.done  # the one before, where the newest is damaged
            origin = f"resumed after {done} steps"
    size = config.data.batch_size
    part = layout.share_of_batch(layout.reading_lead(fusion_of(config).lead, size), size)
    data = Batches(config.data, config.model.conditions, config.codec)
    data_from = functools.partial(_batches, data, part)
    batches = data_from(done + left_out.offset(done))
    watchdog.at(done, "reading the first batch")
    batch = next(batches)
    spec = spec_of(config, batch["frames"])
    mesh = jax.sharding.get_mesh()
    kernel = resolve_kernel(config.attention, mesh.devices.flat[0].platform, config.model.head_size, config.model.dtype)
    denoiser = make_denoiser(config.model, config.grid, kernel)
    encodes = batch["frames"].dtype == np.uint8
    codec = config.codec.parameters() if encodes or config.codec.present else {}
    placed = layout.jit_placed(lambda codec: jax.tree.map(jnp.copy, codec), table, codec)  # a step donates its own
    evaluators = (*evaluators, make_validation(denoiser, config, placed(codec), encodes or config.codec.present))
    if not done:
        watchdog.at(done, "initializing")
        params, origin = initial_params(spec, config.seed, init_from, frozen_dtypes(shapes, config))
        trained, frozen = split_params(params, table, config.trains)
        del params
        make = layout.jit_placed(lambda trained: fresh_training(trained, config), table, trained, donate=True)
        state = make(trained) | {"frozen": frozen}
    state["codec"] = placed(codec) if encodes else {}
    plain = None
    if config.model.remat != "none" and chip_of(mesh.devices.flat[0].device_kind):  # else nobody asks for the MFU
        plain = make_train_step(make_denoiser(config.model.with_remat("none"), config.grid, XLA), config)
    steps = CompiledSteps(make_train_step(denoiser, config), config, part, plain)
    watchdog.at(done, "compiling")
    print(f"{config.name}: {origin}; mesh {describe(mesh.shape)}; {kernel}")
    print(describe_cost(steps, state, batch))
    fingerprint = data.open("train").fingerprint
    peers.of_first(
        "make", lambda: make_folder(config, folder, start.overwrite, None if done else init_from, fingerprint, identity)
    )
    if local and not done:
        local.drop()  # those of a run that was there before
    checkpoints = checkpoints or open_checkpoints()
    digests = make_digests(state) if mesh.shape["data"] > 1 and config.replicas_every else None
    wandb = WandbLog(config.wandb, work, config.name, to_json(config)) if config.wandb and peers.first else None
    return Run(
        config=config,
        storage=storage,
        spec=spec,
        state=state,
        done=done,
        batches=batches,
        batch=batch,
        steps=steps,
        evaluators=evaluators,
        checkpoints=checkpoints,
        local=local,
        export=Export(storage, to_json(spec), peers),
        writer=MetricsWriter(work, done, also=wandb) if peers.first else None,
        pace=Pace(work, peers, done, since, also=wandb),
        peers=peers,
        watchdog=watchdog,
        data_from=data_from,
        left_out=left_out,
        wandb=wandb,
        digests=digests,
        bad=bad,
    )


def _batches(data: Batches, part: tuple[int, int], position: int) -> Iterator[dict[str, Any]]:
    return data.train(start_step=position, process=part[0], process_count=part[1])


def check_batch(config: TrainConfig) -> None:
    """Raises UserError where the ambient mesh does not divide the batch, unless the config allows that."""
    sizes, lead = jax.sharding.get_mesh().shape, fusion_of(config).lead
    times = repeats(config.data.batch_size, lead, sizes)
    if times > 1 and not config.repeat_examples:
        axes = {axis: sizes[axis] for axis in EXAMPLE_AXES[lead]}
        raise UserError(
            f"data.batch_size is {config.data.batch_size}, which {describe(axes)} of the mesh do not divide, so each example "
            f"would be computed {times} times: give a multiple of {math.prod(axes.values())}, a smaller mesh axis, or "
            "--repeat-examples"
        )


def spec_of(config: TrainConfig, frames: np.ndarray) -> ModelSpec:
    """What sampling will know of a run's model, from its config and a batch's frames, which may be stored latents.

    A fused model keeps its stride, so that longer grids keep the distances.
    """
    grid, data, codec = config.grid, config.data, config.codec
    times, (height, width) = data.times, frames.shape[3:5]
    if frames.dtype != np.uint8:
        merged, down, across = codec.factors
        times = next(n for n in range(merged * data.times, 0, -1) if _latents(codec, n) == data.times)
        height, width = height * down, width * across
    fusion = grid.make_fusion()
    if isinstance(fusion, Fused) and fusion.stride is None:
        grid = dataclasses.replace(grid, stride=len(codec.groups(times)))
    views = 1 if isinstance(fusion, Base) else data.views
    return ModelSpec(
        config.model, grid, views, times, (height, width), config.sigma.shift, codec, config.sampling_steps
    )


def _latents(codec: Codec, times: int) -> int:
    """How many latents so many frames have; 0 where the codec refuses their number."""
    try:
        return len(codec.groups(times))
    except UserError:
        return 0
