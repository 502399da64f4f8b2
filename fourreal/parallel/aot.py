"""The training step compiled for accelerators that are not there: what it needs and what it does.

XLA's own compiler for TPUs comes with libtpu (the extra `tpu`) and runs on any Linux machine. It runs in a process of its
own, which gets a question as JSON and prints an answer as JSON: libtpu wants an environment of its own, logs to files, and
can end the process it is in. Nothing is allocated; state and batch are shapes with their places on the mesh.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fourreal.config import TrainConfig
from fourreal.parallel.chips import Topology, parse_topology
from fourreal.serialize import from_json, to_json

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
TEXT_TOKENS = 512  # of an embedded text, as Wan takes it
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


class DoesNotFit(ValueError):
    """The program needs more memory than a device has; `needed` and `available` are in bytes, None where unknown."""

    def __init__(self, message: str, needed: float | None, available: float | None):
        super().__init__(message)
        self.needed, self.available = needed, available


def compile_elsewhere(question: Question) -> dict[str, Any]:
    """What `describe_step` says, from a process of its own.

    Raises DoesNotFit where the program does not fit a device, ValueError without libtpu and for settings that the mesh or the
    compiler refuses.
    """
    topology = parse_topology(question.topology, question.slices)
    if topology.chip.sides and not libtpu_installed():
        raise ValueError("the compiler for TPUs is not installed: pip install -e '.[tpu]' brings it (Linux on x86)")
    home = str(Path(__file__).parents[2])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.run(
        [sys.executable, "-P", "-m", "fourreal.parallel.aot"],
        input=json.dumps(to_json(question)),
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": paths},
    )
    answers = [line for line in child.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        killed = child.returncode in (-9, 137)
        raise ValueError(
            f"the compiler for {topology.name} stopped with code {child.returncode}"
            + (": this machine's memory was too small for it" if killed else f": {last}")
        )
    answer = json.loads(answers[-1].removeprefix(ANSWER))
    if "refused" in answer:
        raise ValueError(answer["refused"])
    if "needed" in answer:
        raise DoesNotFit(answer["message"], answer["needed"], answer["available"])
    return answer


def libtpu_installed() -> bool:
    """Whether the compiler for TPUs is there."""
    return importlib.util.find_spec("libtpu") is not None or os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", ""))


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
        raise ValueError(f"libtpu knows no topology {topology.name}: {said}") from None
    return list(description.devices)


def step_inputs(question: Question) -> tuple[dict[str, Any], dict[str, str]]:
    """(shapes of a batch, static arguments of the step): uint8 pixels, float32 latents, an embedded text an example."""
    import jax
    import jax.numpy as jnp

    config, data = question.config, question.config.data
    cells = (data.views, data.times) if data.kind == "grid" else (data.times,)
    channels = config.model.channels
    frames = (data.batch_size, *cells, question.height, question.width, channels)
    shapes = {
        "frames": jax.ShapeDtypeStruct(frames, jnp.uint8 if channels == 3 else jnp.float32),
        "given": jax.ShapeDtypeStruct(frames[: 1 + len(cells)], jnp.bool_),
    }
    if config.model.cameras:
        views = (data.batch_size, data.views if data.kind == "grid" else data.times)
        shapes["K"] = jax.ShapeDtypeStruct((*views, 3, 3), jnp.float32)
        shapes["c2w"] = jax.ShapeDtypeStruct((*views, 4, 4), jnp.float32)
        shapes["cameras_known"] = jax.ShapeDtypeStruct(views[:1], jnp.bool_)
    if config.model.text_width is not None:  # one for all clips of a grid
        shapes["text"] = jax.ShapeDtypeStruct((data.batch_size, 1, TEXT_TOKENS, config.model.text_width), jnp.float32)
    return shapes, {} if data.kind == "grid" else {"context": "dynamic"}


def describe_step(question: Question) -> dict[str, Any]:
    """Compiles the training step here and now, and says what it is made of; all numbers of one step.

    `flops` are the model's, without recomputation; `executed` those of the program, of all devices together. `memory`,
    `traffic` and `collectives` are of one device. `coordinates` are the places on the torus of the first slice's devices.
    For GPUs, memory and traffic are estimates and collectives those of XLA's program for as many CPUs.
    """
    import jax

    from fourreal.models.build import make_forward, split_model
    from fourreal.models.kernels import XLA, Kernel, resolve_kernel
    from fourreal.parallel import gpu_memory, hlo, layout
    from fourreal.parallel.mesh import make_mesh, slice_of
    from fourreal.training.cost import compiled_bytes, jaxpr_flops, matmul_flops
    from fourreal.training.loop import trace_step
    from fourreal.training.state import fresh_state
    from fourreal.training.step import make_train_step

    config, model = question.config, question.config.model
    topology = parse_topology(question.topology, question.slices)
    for_tpu = topology.chip.sides > 0
    kernel = resolve_kernel(config.attention, "tpu" if for_tpu else "gpu", model.head_size, model.dtype)
    inputs, static = step_inputs(question)

    def step(kernel: Kernel, **changes: Any) -> tuple[Callable, Any]:
        """(the step as a function of state and batch, the shapes of the state) with a kernel and changed settings."""
        ours = dataclasses.replace(config, model=dataclasses.replace(model, **changes))
        graph, params = split_model(ours.model, ours.grid if ours.data.kind == "grid" else None, kernel)
        train_step = make_train_step(make_forward(graph), ours)
        state = jax.eval_shape(lambda params: fresh_state(params, ours), params)

        def with_text(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, dict]:
            text = {"text": batch["text"][:, 0]} if "text" in batch else {}
            return train_step(state, batch, **text, **static)

        return with_text, state

    plain, state = step(XLA, remat="none")
    answer = {
        "kernel": str(kernel),
        "tokens": inputs["frames"].size // (model.channels * model.patch[1] ** 2),
        "trained": _count(state["params"]),
        "frozen": _count(state["frozen"]),
        "flops": matmul_flops(plain, state, inputs),
    }
    mesh = make_mesh(config.mesh, topology_devices(topology) if for_tpu else stand_ins(topology.devices))
    with jax.set_mesh(mesh):
        layout.check_widths(model)
        state, inputs = layout.placed_shapes(state), layout.batch_shapes(inputs, config.data.kind, 1)
        # cuDNN's own cannot be traced here; splash attention keeps for backward what it keeps, and XLA compiles for CPUs.
        traced, _ = step(kernel if for_tpu else Kernel("splash"))
        compiles, _ = step(kernel if for_tpu else XLA)
        jaxpr = jax.make_jaxpr(traced)(state, inputs).jaxpr
        began = time.monotonic()
        try:
            compiled = trace_step(compiles, state, inputs).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            return too_large(str(error))
    program = hlo.parse(compiled.as_text())
    if for_tpu:
        memory, traffic = compiled_bytes(compiled), hlo.memory_traffic(program)
    else:
        memory, traffic = gpu_memory.estimate(config, mesh.shape, state, inputs, jaxpr, answer["tokens"])
    first = [device for device in mesh.devices.flat if slice_of(device) == slice_of(mesh.devices.flat[0])]
    return answer | {
        "executed": jaxpr_flops(jaxpr),
        "seconds": time.monotonic() - began,
        "mesh": dict(mesh.shape),
        "memory": memory,
        "traffic": traffic,
        "collectives": [dataclasses.asdict(each) for each in hlo.collectives(program)],
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
        raise ValueError(f"the compiler refuses the program: {said[:500]}")
    sizes = [
        float(size) * UNITS[unit] for size, unit in re.findall(r"\b(\d+(?:\.\d+)?)([KMGT]?)\b(?= of|\)| hbm)", said)
    ]
    needed, available = sizes[:2] if len(sizes) > 1 else (None, None)
    return {"message": said[:500], "needed": needed, "available": available}


def main() -> None:
    """Answers the question on stdin."""
    question = from_json(Question, json.load(sys.stdin))
    try:
        answer = describe_step(question)
    except ValueError as error:
        answer = {"refused": str(error)}
    print(ANSWER + json.dumps(answer), flush=True)
    os._exit(0)  # without tearing libtpu down


if __name__ == "__main__":
    main()
