"""A program compiled for accelerators that are not there, the training step here: what it needs and what it does.

XLA's own compiler for TPUs comes with libtpu (`make setup` or the extra `tpu` brings it) and runs on any Linux machine. It
runs in a process of its own, which gets a question as JSON and prints an answer as JSON: libtpu wants an environment of its
own, logs to files, and can end the process it is in. Nothing is allocated; state and batch are shapes with their places on
the mesh.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fourreal.data.batches import PipelineConfig
from fourreal.errors import UserError
from fourreal.parallel.chips import Topology, parse_topology
from fourreal.scene import Cameras, Scene
from fourreal.serialize import from_json, to_json
from fourreal.training.config import TrainConfig

# What libtpu would otherwise ask of the metadata server, where it would log, and a lock that is for chips that are there.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
LIBTPU = Path(sys.prefix, "tpu-compiler", "libtpu", "libtpu.so")  # where `make setup` puts it: JAX does not look there
ANSWER = "answer: "  # before the answer, in case a library prints, too
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be compiled."""

    config: TrainConfig
    topology: str
    """as v5e:4x4"""
    slices: int
    height: int
    """of a frame, in pixels or latent pixels"""
    width: int
    """of a frame"""
    program: Literal["step", "denoise", "encode", "decode"] = "step"
    """a training step, or what of sampling, see `sampling.describe_program`"""
    guidance: bool = False
    """of sampling"""


class DoesNotFit(UserError):
    """The program needs more memory than a device has; `needed` and `available` are in bytes, None where unknown."""

    def __init__(self, message: str, needed: float | None, available: float | None):
        super().__init__(message)
        self.needed, self.available = needed, available


def compile_elsewhere(question: Question) -> dict[str, Any]:
    """Runs `describe_step`, or `sampling.describe_program`, in a process of its own.

    Raises DoesNotFit where the program does not fit a device, UserError without libtpu and for settings that the mesh or the
    compiler refuses.
    """
    topology = parse_topology(question.topology, question.slices)
    library = find_libtpu()
    if topology.chip.sides and not library:
        raise UserError(
            "the compiler for TPUs is not installed: make setup, or pip install -e '.[tpu]', brings it (Linux on x86)"
        )
    home = str(Path(__file__).parents[2])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.run(
        [sys.executable, "-P", "-m", "fourreal.planning.aot"],
        input=json.dumps(to_json(question)),
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": paths} | ({"TPU_LIBRARY_PATH": str(library)} if library else {}),
    )
    answers = [line for line in child.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        killed = child.returncode in (-9, 137)
        if child.returncode == 1:  # an exception of Python's that is no user's mistake
            raise RuntimeError(f"planning for {topology.name} failed:\n{child.stderr}")
        raise UserError(
            f"the compiler for {topology.name} stopped with code {child.returncode}"
            + (": this machine's memory was too small for it" if killed else f": {last}")
        )
    answer = json.loads(answers[-1].removeprefix(ANSWER))
    if "refused" in answer:
        raise UserError(answer["refused"])
    if "needed" in answer:
        raise DoesNotFit(answer["message"], answer["needed"], answer["available"])
    return answer


def find_libtpu() -> Path | None:
    """The compiler for TPUs: what the user names, what JAX finds, or what only this module does; None where there is none.

    JAX asks any libtpu that it finds for TPUs, which prints a page of errors where there are none.
    """
    package = importlib.util.find_spec("libtpu")
    beside = Path(package.origin).with_name("libtpu.so") if package else LIBTPU
    named = Path(os.environ.get("TPU_LIBRARY_PATH") or beside)
    return next((path for path in (named, beside, LIBTPU) if path.is_file()), None)


def topology_devices(topology: Topology) -> list:
    """The devices of a TPU topology, as JAX sees them there."""
    from jax.experimental import topologies

    settings = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if topology.slices > 1:
        settings["num_slices"] = topology.slices
    if topology.shape == (1, 1):
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **settings)
    except Exception as error:  # the compiler's own
        said = " ".join(str(error).split())
        raise UserError(f"libtpu knows no topology {topology.name}: {said}") from None
    return list(description.devices)


def takes_latents(config: TrainConfig) -> bool:
    """Whether a plan's frames are stored latents, not pixels: where the model's channels are not those of pixels."""
    return config.model.channels != 3


def largest_cut(data: PipelineConfig) -> tuple[int, int, int]:
    """(examples, views, times) of the largest batch that a run draws."""
    count, views, times = data.batch_size, data.views, data.times
    cuts = {
        "grid": (count, views, times),
        "fixed_view": (count, 1, times),
        "freeze_time": (count, views, 1),
        "image": (count * times, 1, 1),
    }
    return max((cut for name, cut in cuts.items() if getattr(data.cuts, name)), key=math.prod)


def latent_times(config: TrainConfig, times: int) -> int:
    """The times of the latents of so many times of a batch, which may be latents."""
    return times if takes_latents(config) else len(config.codec.groups(times))


def cell_tokens(config: TrainConfig, tokens: int) -> int:
    """The tokens of a cell, of all tokens of a step's largest batch."""
    examples, views, times = largest_cut(config.data)
    return tokens // (examples * views * latent_times(config, times))


def batch_of(question: Question) -> dict[str, Any]:
    """The shapes of what a step gets of a batch of whole scenes, see `data/batches.py`: uint8 pixels or float32 latents."""
    import jax
    import numpy as np

    config, latents = question.config, takes_latents(question.config)
    count, views, times = largest_cut(config.data)
    merged = latent_times(config, times)
    frame = (question.height, question.width, config.model.channels)
    shape = (views, times, *frame)
    frames, given = np.zeros((), np.float32 if latents else np.uint8), np.zeros((views, merged), bool)
    cameras = Cameras(*(np.broadcast_to(np.eye(side, dtype=np.float32), (views, side, side)) for side in (3, 4)))
    scene = Scene(np.broadcast_to(frames, shape), cameras=cameras)
    conditions = {each.name: each.shapes(scene, given) for each in config.model.conditions}
    example = {
        "frames": scene.frames,
        "given": given,
        "conditions": {name: value for name, value in conditions.items() if value is not None},
    }
    if dropped := {each.name: np.array(False) for each in config.model.conditions if each.drop}:
        example["dropped"] = dropped
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), example)


def describe_step(question: Question) -> dict[str, Any]:
    """Compiles the training step here and now, and returns what it needs; all numbers are of one step.

    `flops` are the model's, without recomputation; `executed` those of the program, of all devices together. `checkpoint` and
    `frozen_bytes` are bytes of a save and of what is saved once. `memory`, `traffic` and `collectives` are of one device.
    `coordinates` are the places on the torus of the first slice's devices. For GPUs, memory and traffic are estimates and
    collectives those of XLA's program for as many CPUs, as if all overlapped.
    """
    import jax

    from fourreal.diffusion.denoiser import make_denoiser
    from fourreal.models.build import model_table, split_model
    from fourreal.nn.kernels import XLA, Kernel, resolve_kernel
    from fourreal.parallel import layout
    from fourreal.parallel.mesh import make_mesh, slice_of
    from fourreal.planning import gpu_memory, hlo
    from fourreal.planning.collectives import collectives
    from fourreal.planning.traffic import memory_traffic
    from fourreal.training.compiled import tokens_of, trace_step
    from fourreal.training.cost import compiled_bytes, jaxpr_flops, matmul_flops
    from fourreal.training.state import checkpoint_bytes, fresh_state
    from fourreal.training.step import fusion_of, input_axes, make_train_step

    config, model = question.config, question.config.model
    topology = parse_topology(question.topology, question.slices)
    for_tpu = topology.chip.sides > 0
    kernel = resolve_kernel(config.attention, "tpu" if for_tpu else "gpu", model.head_size, model.dtype)
    inputs = batch_of(question)

    def step(kernel: Kernel, model: Any = model) -> tuple[Callable, Any]:
        """(the step as a function of state and batch, the shapes of the state) with a kernel and another model."""
        ours = dataclasses.replace(config, model=model)
        _, params = split_model(ours.model, ours.grid)
        state = jax.eval_shape(lambda params: fresh_state(params, ours), params)
        return make_train_step(make_denoiser(ours.model, ours.grid, kernel), ours), state

    plain, state = step(XLA, model.with_remat("none"))
    answer = {
        "kernel": str(kernel),
        "tokens": tokens_of(config, inputs["frames"]),
        "trained": _count(state["params"]),
        "frozen": _count(state["frozen"]),
        "checkpoint": checkpoint_bytes(state),
        "frozen_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state["frozen"])),
        "flops": matmul_flops(plain, state, inputs),
    }
    mesh = make_mesh(config.mesh, topology_devices(topology) if for_tpu else stand_ins(topology.devices))
    with jax.set_mesh(mesh):
        layout.check_widths(model)
        state = layout.placed_shapes(state, model_table(model, config.grid))
        inputs = layout.batch_shapes(inputs, input_axes(config, inputs), 1, fusion_of(config).lead)
        # cuDNN's own cannot be traced here; splash attention keeps for backward what it keeps, and XLA compiles for CPUs.
        traced, _ = step(kernel if for_tpu else Kernel("splash"))
        compiles, _ = step(kernel if for_tpu else XLA)
        jaxpr = jax.make_jaxpr(traced)(state, inputs).jaxpr
        began = time.monotonic()
        try:
            compiled = trace_step(compiles, state, inputs, config.overlap).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            return too_large(str(error))
    program = hlo.parse(compiled.as_text())
    if for_tpu:
        memory, traffic = compiled_bytes(compiled), memory_traffic(program)
    else:
        memory, traffic = gpu_memory.estimate(config, mesh.shape, state, inputs, jaxpr, answer["tokens"])
    first = [device for device in mesh.devices.flat if slice_of(device) == slice_of(mesh.devices.flat[0])]
    return answer | {
        "executed": jaxpr_flops(jaxpr),
        "seconds": time.monotonic() - began,
        "mesh": dict(mesh.shape),
        "memory": memory,
        "traffic": traffic,
        "collectives": [
            dataclasses.asdict(each) | ({} if for_tpu else {"overlaps": True}) for each in collectives(program)
        ],
        "coordinates": [list(device.coords) for device in first] if for_tpu else [],
    }


def stand_ins(count: int) -> list:
    """As many CPU devices, for chips that this machine has no compiler for: XLA cuts the program in the same way."""
    import jax

    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_disable_most_optimizations", True)  # of machine code, which nobody will run
    return jax.devices("cpu")


def _count(tree: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def too_large(message: str) -> dict[str, Any]:
    """The answer for a program that the compiler refused; raises ValueError where memory was not the reason."""
    said = " ".join(message.split())
    if "RESOURCE_EXHAUSTED" not in said or "hbm" not in said.lower():
        raise UserError(f"the compiler refuses the program: {said[:500]}")
    sizes = [
        float(size) * UNITS[unit] for size, unit in re.findall(r"\b(\d+(?:\.\d+)?)([KMGT]?)\b(?= of|\)| hbm)", said)
    ]
    needed, available = sizes[:2] if len(sizes) > 1 else (None, None)
    return {"message": said[:500], "needed": needed, "available": available}


def main() -> None:
    """Answers the question on stdin."""
    from fourreal.planning.sampling import describe_program

    question = from_json(Question, json.load(sys.stdin))
    try:
        answer = (describe_step if question.program == "step" else describe_program)(question)
    except UserError as error:
        answer = {"refused": str(error)}
    print(ANSWER + json.dumps(answer), flush=True)
    os._exit(0)  # without tearing libtpu down


if __name__ == "__main__":
    main()
