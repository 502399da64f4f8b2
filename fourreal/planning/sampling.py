"""What sampling one grid needs and does on accelerators that are not there: `plan --sample`.

    denoise   all evaluations of the model on one grid, as one program
    encode    pieces of a grid to latents, one a device; decode: back to pixels; for codecs with programs of their own

Each is compiled by itself, as `GridPipeline` runs them. Parameters of model and codec are on the devices all the while, so the
peak is that of the largest program with the parameters of the others beside it.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from fourreal.codecs import WanCodec
from fourreal.codecs.wan import Tiles
from fourreal.codecs.wan.codec import RANDOM
from fourreal.errors import UserError
from fourreal.models.fusions import Base
from fourreal.parallel.chips import GIB, Topology, parse_topology
from fourreal.parallel.mesh import MeshConfig, describe, fit_mesh
from fourreal.planning import aot, roofline
from fourreal.planning.table import OF_GPUS, assumed, binary, decimal, say
from fourreal.training.config import TrainConfig
from fourreal.training.step import fusion_of

OF_CODECS = "a codec's memory and traffic are those of XLA's program for CPUs; cuDNN's workspace comes on top"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of sampling, and how often it runs for a grid; see `describe_program`."""

    name: str
    answer: dict[str, Any]
    seconds: roofline.Seconds
    """of one run"""

    @property
    def runs(self) -> int:
        return self.answer["runs"]

    @property
    def owner(self) -> str:
        """Whose parameters it takes; encoder and decoder are one codec."""
        return "model" if self.name == "denoise" else "codec"

    @property
    def parameters(self) -> int:
        """Bytes of a device."""
        return self.answer["parameters"]

    @property
    def beside(self) -> int:
        """Bytes of a device beside the parameters."""
        return self.answer["memory"]["total"] - self.parameters


def plan(config: TrainConfig, topology: Topology, size: tuple[int, int], guidance: bool) -> str:
    """The table of sampling one grid. Raises UserError for a grid that the model does not take or that does not fit."""
    if isinstance(fusion_of(config), Base):
        raise UserError("the config is of a base on clips: sampling is of a grid model, as with --grid.fusion soft")
    config = of_one_grid(config)
    latent_size(config, size)
    names = ["denoise", *(["encode", "decode"] if config.codec.in_pieces else [])]
    programs = []
    for name in names:
        say(f"compiling what a grid takes to {name} for {topology.name}; a large model takes minutes")
        programs.append(plan_program(config, topology, size, guidance, name))
    check_fits(config, topology, guidance, programs)
    return report(config, topology, size, guidance, programs)


def of_one_grid(config: TrainConfig) -> TrainConfig:
    """The config with a batch of one whole grid."""
    data = dataclasses.replace(config.data, batch_size=1, cuts=type(config.data.cuts)())
    return dataclasses.replace(config, data=data)


def latent_size(config: TrainConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what the model sees. Raises UserError for sides that do not divide, and another codec's channels."""
    if config.codec.in_pieces and config.codec.channels != config.model.channels:
        raise UserError(
            f"model.channels is {config.model.channels}: the codec '{config.codec.kind}' has {config.codec.channels}"
        )
    if config.codec.in_pieces:
        size = config.codec.shape(config.data.times, *size)[1:3]
    patch = config.model.patch[1]
    if min(size) < 1 or size[0] % patch or size[1] % patch:
        raise UserError(f"size {size[0]} x {size[1]} of what the model sees: give multiples of its patch, {patch}")
    return size


def plan_program(config: TrainConfig, topology: Topology, size: tuple[int, int], guidance: bool, name: str) -> Program:
    """One of the programs. Raises UserError where it does not fit by itself."""
    try:
        answer = aot.compile_elsewhere(aot.Question(config, topology.name, topology.slices, *size, name, guidance))
    except aot.DoesNotFit as error:
        raise too_large(config, topology, guidance, name, error.needed) from error
    collectives = roofline.from_answer(answer["collectives"])
    seconds = roofline.estimate(topology, answer["executed"], answer["traffic"], collectives, answer["coordinates"])
    return Program(name, answer, seconds)


def check_fits(config: TrainConfig, topology: Topology, guidance: bool, programs: list[Program]) -> None:
    """Raises UserError where a program does not fit beside the parameters of all."""
    for program in programs:
        if (needed := peak(programs, program)) > topology.chip.usable / topology.chip.devices:
            raise too_large(config, topology, guidance, program.name, needed)


def peak(programs: list[Program], program: Program) -> int:
    """Bytes of a device while a program runs."""
    return sum(held(programs).values()) + program.beside


def held(programs: list[Program]) -> dict[str, int]:
    """Bytes of parameters on a device, by whose they are."""
    return {each.owner: each.parameters for each in programs}


def too_large(config: TrainConfig, topology: Topology, guidance: bool, name: str, needed: float | None) -> UserError:
    """That a program does not fit, with what to do."""
    usable = topology.chip.usable / topology.chip.devices / GIB
    needs = f"needs {needed / GIB:.2f} GiB a device" if needed else "needs more memory"
    codec = config.codec
    if name == "denoise":
        ways = ["a larger --topology", "fewer --data.views or --data.times"]
        if isinstance(codec, WanCodec) and codec.mode == "per_cell":
            ways += ["a --codec with mode=per_view, a quarter of the tokens"]
        ways += ["no --guidance"] if guidance else []
    else:
        ways = ["a larger --topology"]
        if isinstance(codec, WanCodec):
            tiles = Tiles(codec.tiles.size // 2, codec.tiles.stride // 2) if codec.tiles else Tiles()
            ways = [f"tiles, --codec '{dataclasses.replace(codec, tiles=tiles).to_text()}'", *ways]
    return UserError(f"to {name} {needs} and {topology.chip.name} has {usable:.2f}: give {' or '.join(ways)}")


def sampling_mesh(config: TrainConfig, topology: Topology) -> MeshConfig:
    """The mesh that `GridPipeline` takes by default."""
    width = math.gcd(config.model.width, config.model.mlp_width)
    return fit_mesh(topology.devices, config.data.views, config.data.times, width, topology.slices)


def report(
    config: TrainConfig, topology: Topology, size: tuple[int, int], guidance: bool, programs: list[Program]
) -> str:
    """The table, as text."""
    chip, denoise = topology.chip, programs[0].answer
    views, times, steps = config.data.views, config.data.times, config.sampling_steps
    usable = binary(chip.usable / chip.devices)
    chips = "1 chip" if topology.chips == 1 else f"{topology.chips} chips"
    guided = "with guidance, two evaluations a step" if guidance else "without guidance"
    params = ", ".join(f"{binary(size)} of the {owner}" for owner, size in held(programs).items())
    rows = [
        ("topology", f"{topology.name}, {chips}; mesh {describe(denoise['mesh'])}; {denoise['kernel']}"),
        (
            "grid",
            f"{views} views x {times} times of {size[0]} x {size[1]}, {denoise['tokens']:,} tokens; {steps} steps {guided}",
        ),
        ("parameters", f"{denoise['count'] / 1e6:,.1f} M of the model; a device holds {params}"),
    ]
    for each in programs:
        rows += program_rows(programs, each, usable)
    if (same := round(denoise["executed"] / denoise["flops"])) > 1:
        rows.append(
            ("", f"{same} devices compute the same each" + ("" if guidance else "; with guidance, other branches"))
        )
    best, worst = (sum(getattr(each.seconds, of) * each.runs for each in programs) for of in ("best", "worst"))
    rows += [
        ("a grid", f"{best:.3g} to {worst:.3g} s by these, of all its cells: an estimate"),
        ("assumed", assumed(topology)),
        *(("", line) for line in roofline.ASSUMPTIONS),
        *([] if chip.sides else [("", line) for line in (*OF_GPUS, *[OF_CODECS][: len(programs) - 1])]),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def program_rows(programs: list[Program], program: Program, usable: str) -> list[tuple[str, str]]:
    """The rows of a program, of all its runs for a grid."""
    seconds, runs = program.seconds, program.runs
    flops = f"{decimal(program.answer['flops'] * runs)} FLOPs" + (f" in {runs} runs" if runs > 1 else "")
    needs = (
        f"{binary(program.beside)} beside the parameters, peak {binary(peak(programs, program))} of {usable} a device"
    )
    best, worst, compute, memory, links = (
        each * runs
        for each in (seconds.best, seconds.worst, seconds.compute, seconds.memory, seconds.links + seconds.network)
    )
    return [
        (program.name, f"{flops}; {needs}"),
        ("", f"{best:.3g} to {worst:.3g} s: compute {compute:.3g} s, memory {memory:.3g} s, links {links:.3g} s"),
    ]


def describe_program(question: aot.Question) -> dict[str, Any]:
    """Compiles one of the programs here and now, and returns what it needs; `runs` of them make a grid.

    `flops` are what a run takes, `executed` those of all devices together, of which some compute the same; `memory`,
    `parameters` (bytes), `traffic` and `collectives` are of one. For GPUs, memory and traffic of the model are by formula, of a
    codec those of XLA's program for CPUs, as are the collectives.
    """
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from fourreal.nn.kernels import XLA, resolve_kernel
    from fourreal.parallel.mesh import make_mesh, repeats, slice_of
    from fourreal.parallel.overlap import compiler_options
    from fourreal.planning import gpu_memory, hlo
    from fourreal.planning.collectives import collectives
    from fourreal.planning.traffic import memory_traffic
    from fourreal.training.cost import compiled_bytes, matmul_flops

    config, topology = question.config, parse_topology(question.topology, question.slices)
    for_tpu, denoises = topology.chip.sides > 0, question.program == "denoise"
    devices = aot.topology_devices(topology) if for_tpu else aot.stand_ins(topology.devices)
    # The memory of a codec on GPUs is read from the program, so that one is optimized.
    jax.config.update("jax_disable_most_optimizations", not for_tpu and denoises)
    mesh = make_mesh(sampling_mesh(config, topology), devices)
    kernel = resolve_kernel(config.attention, "tpu" if for_tpu else "gpu", config.model.head_size, config.model.dtype)
    whole = NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        if denoises:
            function, arguments, about = denoising(question, kernel if for_tpu else XLA)
        else:
            function, arguments, about = coding(question, mesh.size)
        plain = denoising(question, XLA)[0] if denoises else function
        began = time.monotonic()
        try:
            jitted = jax.jit(function, out_shardings=whole, keep_unused=True, compiler_options=compiler_options())
            compiled = jitted.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            return aot.too_large(str(error))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    flops = matmul_flops(plain, *shapes)  # without a mesh, so that everything counts once
    same = (
        repeats(1 + question.guidance, fusion_of(config).lead, mesh.shape)
        if denoises
        else mesh.size / len(arguments[1])
    )
    program = hlo.parse(compiled.as_text())
    memory, traffic = compiled_bytes(compiled), memory_traffic(program)
    if denoises and not for_tpu:
        evaluations, branches = about["evaluations"], 1 + question.guidance
        memory, traffic = gpu_memory.estimate_sampling(
            config, mesh.shape, arguments, about["tokens"], evaluations, branches
        )
    first = [device for device in mesh.devices.flat if slice_of(device) == slice_of(mesh.devices.flat[0])]
    return about | {
        "flops": flops,
        "executed": int(flops * same),
        "seconds": time.monotonic() - began,
        "parameters": gpu_memory.on_device(arguments[0]),
        "kernel": str(kernel),
        "mesh": dict(mesh.shape),
        "memory": memory,
        "traffic": traffic,
        "collectives": [
            dataclasses.asdict(each) | ({} if for_tpu else {"overlaps": True}) for each in collectives(program)
        ],
        "coordinates": [list(device.coords) for device in first] if for_tpu else [],
    }


def denoising(question: aot.Question, kernel: Any) -> tuple[Callable, tuple, dict[str, Any]]:
    """(what goes from noise to a grid in the model's space, the placed shapes of its arguments, numbers for the answer)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from fourreal.codecs import to_latents
    from fourreal.diffusion.denoiser import make_denoiser
    from fourreal.diffusion.guidance import scale_branches
    from fourreal.diffusion.stage import Stage
    from fourreal.grid import Known
    from fourreal.models.build import computed_types, model_table, split_model
    from fourreal.parallel import layout

    config = question.config
    height, width = latent_size(config, (question.height, question.width))
    layout.check_widths(config.model)
    table, (_, params) = model_table(config.model, config.grid), split_model(config.model, config.grid)
    params = jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype), params, computed_types(params, table))
    params = layout.placed_shapes(params, table)
    merged = dataclasses.replace(config.data, times=len(config.codec.groups(config.data.times)))  # a batch of latents
    latent = dataclasses.replace(config, data=merged) if config.codec.in_pieces else config
    batch = aot.batch_of(dataclasses.replace(question, config=latent, height=height, width=width))
    branches, weights = scale_branches(2.0 if question.guidance else 1.0)
    stage = Stage(make_denoiser(config.model, config.grid, kernel), config.codec, shift=config.sigma.shift)
    latents = jax.ShapeDtypeStruct((*batch["given"].shape, height, width, config.model.channels), np.float32)

    def run(params, frames, given, noise, conditions):
        known = Known(to_latents(config.codec, {}, frames), given)
        x0 = stage.integrate(
            params,
            known,
            noise,
            conditions,
            steps=config.sampling_steps,
            branches=branches,
            weights=jnp.asarray(weights),
        )
        return x0 if frames.dtype != np.uint8 else config.codec.decode({}, x0)

    everywhere = NamedSharding(jax.sharding.get_mesh(), P())
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        (batch["frames"], batch["given"], latents, batch["conditions"]),
    )
    cells, patch = math.prod(batch["given"].shape), config.model.patch[1]
    about = {
        "runs": 1,
        "count": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tokens": cells * (height // patch) * (width // patch),
        "evaluations": len(stage.sampler.rows(stage.levels(config.sampling_steps))["sigma"]),
    }
    return run, (params, *inputs), about


def coding(question: aot.Question, devices: int) -> tuple[Callable, tuple, dict[str, Any]]:
    """(the codec's function, the placed shapes of its arguments, numbers for the answer), of as many pieces as devices."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    codec, data = question.config.codec, question.config.data
    frames = (1, data.views, data.times, question.height, question.width, 3)
    shape, dtype = (
        (frames, np.uint8)
        if question.program == "encode"
        else ((1, data.views, *codec.shape(*frames[2:5])), np.float32)
    )
    pieces = jax.eval_shape(codec.pieces, jax.ShapeDtypeStruct(shape, dtype))
    some = jax.ShapeDtypeStruct((min(devices, len(pieces)), *pieces.shape[1:]), dtype)
    everywhere = NamedSharding(jax.sharding.get_mesh(), P())
    without_weights = dataclasses.replace(codec, weights=RANDOM) if hasattr(codec, "weights") else codec
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        (jax.eval_shape(without_weights.parameters), some),
    )
    return getattr(codec, question.program), arguments, {"runs": -(-len(pieces) // len(some))}
