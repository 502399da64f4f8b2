"""The verb `plan`: what a training step, or sampling a grid, needs and does on accelerators that are not there.

fourreal plan configs/wan_1b_sync.py --topology v5e:4x4 --size 36 64
fourreal plan configs/nano.py --topology v5e:2x4 --slices 2 --mesh.grid 2 --data.batch-size 64 --size 64 64
fourreal plan configs/wan_1b_sync.py --topology v6e:2x4 --sample --size 288 512 --sampling-steps 50

TPU topologies are compiled by XLA's own compiler (pip install -e '.[tpu]'). Any setting of the config can follow, as in train.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Annotated

import tyro

from fourreal.errors import UserError
from fourreal.parallel.chips import GIB, Topology, parse_topology
from fourreal.parallel.mesh import describe, microbatch, repeats, share_of_examples
from fourreal.planning import aot, roofline, sampling
from fourreal.planning.collectives import Collective
from fourreal.planning.table import OF_GPUS, assumed, binary, collective_rows, decimal, say
from fourreal.training.config import TrainConfig, read_with_config
from fourreal.training.step import fusion_of


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says what a training step needs on a topology, or sampling a grid, or that it does not fit and what would.

    CONFIG is a file, as configs/tiny.py, the bare name of one that is installed, as tiny, or a run's folder. It gives the
    defaults of all settings, which options change.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    topology: str = ""
    """chips: v5e:4x4, v5p:8x8x4, h100:8 and the like; of v4, v5e, v5p, v6e, tpu7x, h100, rtx4090"""
    slices: int = 1
    """how many of such slices, joined by the network between hosts"""
    size: tuple[int, int] | None = None
    """height and width of a frame in pixels, or in latent pixels; none: as the data set has them"""
    sample: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """of sampling one grid, in `sampling_steps`, on the mesh that sampling takes"""
    guidance: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """sampling with guidance: two evaluations a step"""
    search: float = 300.0
    """seconds to look for settings that fit, where these do not"""
    disk_gbps: float = 1.0
    """GB/s at which all hosts together write and read checkpoints"""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Plan":
        """Reads `CONFIG --topology NAME [--setting value ...]`."""
        return read_with_config(cls, argv, prog, example="configs/nano.py --topology v5e:2x4")

    def run(self) -> None:
        """Prints the table; raises ValueError for a step that does not fit, with settings that do."""
        if not self.topology:
            raise UserError("name the chips with --topology, as v5e:4x4 or h100:8")
        if not 0 < self.disk_gbps < math.inf:
            raise UserError(f"disk_gbps is {self.disk_gbps}: give a number above 0")
        topology = parse_topology(self.topology, self.slices)
        height, width = self.size or stored_size(self.config)
        if self.sample:
            print(sampling.plan(self.config, topology, (height, width), self.guidance))
            return
        if self.guidance:
            raise UserError("guidance is of sampling: add --sample")
        step = fitting_step(self.config, topology, (height, width), self.search)
        print(report(self.config, topology, step, self.disk_gbps))


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled training step; see `aot.describe_step`."""

    tokens: int
    trained: int
    frozen: int
    checkpoint: int
    frozen_bytes: int
    flops: int
    executed: int
    arguments: int
    temporaries: int
    peak: int
    traffic: int
    collectives: list[Collective]
    seconds: roofline.Seconds
    mesh: dict[str, int]
    kernel: str
    compiled_in: float


def stored_size(config: TrainConfig) -> tuple[int, int]:
    """Height and width of the data set's frames."""
    try:
        return config.data.source.open("train").shape(0)[2:]
    except UserError as error:
        raise UserError(
            f"there is no data set in {config.data.source.to_text()} to say the frames' size: give it with --size HEIGHT WIDTH"
        ) from error


def plan_step(config: TrainConfig, topology: Topology, size: tuple[int, int]) -> Step:
    """The training step on a topology; raises DoesNotFit and ValueError as `aot.compile_elsewhere`."""
    config.mesh.sizes(topology.devices, topology.slices)
    check_frame(config, size)
    answer = aot.compile_elsewhere(aot.Question(config, topology.name, topology.slices, *size))
    collectives = roofline.from_answer(answer["collectives"])
    memory, usable = answer["memory"], topology.chip.usable / topology.chip.devices
    if memory["total"] > usable:
        raise aot.DoesNotFit("the compiled program is too large", memory["total"], usable)
    return Step(
        **{
            name: answer[name]
            for name in (
                *("tokens", "trained", "frozen", "checkpoint", "frozen_bytes"),
                *("flops", "executed", "traffic", "mesh", "kernel"),
            )
        },
        arguments=memory["arguments"],
        temporaries=memory["temporaries"],
        peak=memory["total"],
        collectives=collectives,
        seconds=roofline.estimate(topology, answer["executed"], answer["traffic"], collectives, answer["coordinates"]),
        compiled_in=answer["seconds"],
    )


def check_frame(config: TrainConfig, size: tuple[int, int]) -> None:
    """Raises UserError where the patches, and the codec of pixels, do not divide a frame."""
    patch, factors = config.model.patch[1], (1, 1) if aot.takes_latents(config) else config.codec.factors[1:]
    sides = [patch * factor for factor in factors]
    if min(size) < 1 or size[0] % sides[0] or size[1] % sides[1]:
        whole = f"{patch}" if sides == [patch, patch] else f"{patch}, of latents: {sides[0]} and {sides[1]}"
        raise UserError(f"size {size[0]} x {size[1]}: give multiples of the patch, {whole}")


def fitting_step(config: TrainConfig, topology: Topology, size: tuple[int, int], search: float) -> Step:
    """The step; where it does not fit, ValueError with the first of `easier` settings that does, looked for so long."""
    say(f"compiling the training step for {topology.name}; a large model takes minutes")
    try:
        return plan_step(config, topology, size)
    except aot.DoesNotFit as error:
        needs = f"needs {error.needed / GIB:.2f} GiB a device" if error.needed else "needs more memory"
        has = error.available or topology.chip.usable / topology.chip.devices
    began, tried = time.monotonic(), []
    for flags, lighter, larger in easier(config, topology):
        if time.monotonic() - began > search:
            break
        say(f"it {needs} of {has / GIB:.2f}; trying {flags}")
        try:
            step = plan_step(lighter, larger, size)
        except aot.DoesNotFit:
            tried.append(flags)
            continue
        except UserError:  # a mesh that this model does not divide over
            continue
        raise UserError(
            f"it {needs} and {topology.chip.name} has {has / GIB:.2f}: {flags} fits, with {step.peak / GIB:.2f} GiB"
        )
    hints = "; these do not fit either: " + ", ".join(tried) if tried else ""
    raise UserError(
        f"it {needs} and {topology.chip.name} has {has / GIB:.2f}: give a larger --mesh.fsdp, "
        f"--optim.microbatch 1, --model.remat full, --overlap none or a larger --topology{hints}"
    )


def easier(config: TrainConfig, topology: Topology) -> Iterator[tuple[str, TrainConfig, Topology]]:
    """(what to add to the command, config, topology) that need less of a device, what costs least first."""
    sizes = config.mesh.sizes(topology.devices, topology.slices)
    flags, lighter = [], config
    if sizes["data"] > topology.slices:
        fsdp = sizes["fsdp"] * sizes["data"] // topology.slices
        mesh = dataclasses.replace(config.mesh, data=topology.slices, fsdp=fsdp)
        flags, lighter = [f"--mesh.data {topology.slices} --mesh.fsdp {fsdp}"], dataclasses.replace(config, mesh=mesh)
        yield " ".join(flags), lighter, topology
    if topology.chip.sides and topology.devices > 1 and config.overlap != "none":
        yield " ".join([*flags, "--overlap none"]), dataclasses.replace(lighter, overlap="none"), topology
    remats = ["full", "offload"] if topology.chip.sides else ["full"]
    for policy in remats[remats.index(config.model.remat) + 1 if config.model.remat in remats else 0 :]:
        lighter = dataclasses.replace(lighter, model=config.model.with_remat(policy))
        yield " ".join([*flags, f"--model.remat {policy}"]), lighter, topology
    remat = [f"--model.remat {lighter.model.remat}"] if lighter.model.remat != config.model.remat else []
    sizes = lighter.mesh.sizes(topology.devices, topology.slices)
    share = share_of_examples(aot.largest_cut(config.data)[0], fusion_of(config).lead, sizes)
    most = microbatch(share, config.optim.microbatch)
    while most > 1:
        most //= 2
        optim = dataclasses.replace(config.optim, microbatch=most)
        yield (
            " ".join([*flags, *remat, f"--optim.microbatch {most}"]),
            dataclasses.replace(lighter, optim=optim),
            topology,
        )
    if topology.chips < 2**12:
        larger = topology.larger()
        more = dataclasses.replace(lighter.mesh, data=topology.slices, fsdp=-1)
        flags = [f"--topology {larger.name} --mesh.data {topology.slices} --mesh.fsdp -1", *remat]
        yield " ".join(flags), dataclasses.replace(lighter, mesh=more), larger


def report(config: TrainConfig, topology: Topology, step: Step, disk_gbps: float = Plan.disk_gbps) -> str:
    """The table of a step, as text."""
    chip, seconds, (count, views, times) = topology.chip, step.seconds, aot.largest_cut(config.data)
    several = f" x {topology.slices} slices" if topology.slices > 1 else ""
    cells = f"{views} views x {times} times" if min(views, times) > 1 else f"{views * times} frames"
    network = f", network {seconds.network:.3g} s" if topology.slices > 1 or not chip.sides else ""
    exposed = f", {seconds.exposed:.3g} s of it exposed" if chip.sides else ""
    best, worst = (roofline.utilization(topology, step.flops, total) for total in (seconds.best, seconds.worst))
    rows = [
        ("topology", f"{topology.name}{several}, {topology.chips} chips; mesh {describe(step.mesh)}; {step.kernel}"),
        ("tokens", f"{step.tokens:,} a step: {count} examples of {cells}"),
        ("parameters", f"{step.trained / 1e6:,.1f} M train, {step.frozen / 1e6:,.1f} M are frozen"),
        ("FLOPs", f"{decimal(step.flops)} a step of the model, {decimal(step.executed)} with what is computed again"),
        (
            "memory",
            f"arguments {binary(step.arguments)}, temporaries {binary(step.temporaries)}, "
            f"peak {binary(step.peak)} of {binary(chip.usable / chip.devices)} a device",
        ),
        ("checkpoint", checkpoint_row(step, disk_gbps)),
        *collective_rows(step.collectives),
        (
            "time",
            f"compute {seconds.compute:.3g} s, memory {seconds.memory:.3g} s for {binary(step.traffic)}, "
            f"links {seconds.links:.3g} s{network}{exposed}",
        ),
        ("step", f"{seconds.best:.3g} to {seconds.worst:.3g} s by these, MFU {best:.0%} to {worst:.0%}: an estimate"),
        ("assumed", assumed(topology)),
        *(
            ("", line)
            for line in (*roofline.ASSUMPTIONS, *repeated(config, step), *filled_up(config, step), *whole(config, step))
        ),
        *([] if chip.sides else [("", line) for line in OF_GPUS]),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def checkpoint_row(step: Step, disk_gbps: float) -> str:
    """Bytes and seconds of a save, the frozen part that is written once, and a resume, which reads both."""
    save, resume = (size / disk_gbps / 1e9 for size in (step.checkpoint, step.checkpoint + step.frozen_bytes))
    once = f", once {binary(step.frozen_bytes)} of the frozen part" if step.frozen_bytes else ""
    seconds = f"at {disk_gbps:g} GB/s {save:.3g} s to write beside the steps, {resume:.3g} s to resume"
    return f"{binary(step.checkpoint)}{once}; {seconds}"


def repeated(config: TrainConfig, step: Step) -> list[str]:
    """A warning where a batch is smaller than the mesh axes that split it: devices then compute the same examples."""
    times = repeats(aot.largest_cut(config.data)[0], fusion_of(config).lead, step.mesh)
    return (
        [f"{times} devices compute the same examples each, which compute leaves out; train wants --repeat-examples"]
        if times > 1
        else []
    )


def filled_up(config: TrainConfig, step: Step) -> list[str]:
    """A warning where grid does not divide the views or times: devices then compute clips that do not exist."""
    _, views, times = aot.largest_cut(config.data)
    clips = {"views": views, "times": aot.latent_times(config, times)} if fusion_of(config).lead == 2 else {}
    grid = step.mesh["grid"]
    return [
        f"mesh.grid {grid} does not divide {count} {what}: as many are computed as of {count + -count % grid}"
        for what, count in clips.items()
        if count % grid
    ]


def whole(config: TrainConfig, step: Step) -> list[str]:
    """A warning where the mesh's tensor axis does not divide the tokens of a cell, which it cuts between the blocks."""
    tokens, tensor = aot.cell_tokens(config, step.tokens), step.mesh["tensor"]
    said = f"mesh.tensor {tensor} does not divide the {tokens} tokens of a cell: each of {tensor} devices keeps all"
    return [f"{said} between the blocks"] if tokens % tensor else []
