"""Time of a training step and of a sampled grid, with FLOPs, memory and what costs most, for one config here, as JSON.

python benchmarks/training.py configs/nano.py --repeats 5
python benchmarks/training.py configs/large.py --size 384 384 --batch 1 --attention cudnn

FLOPs are the model's matmuls, without what rematerialization computes again, so that their share of the chip's peak is MFU.
"""

import argparse
import collections
import dataclasses
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from fourreal.checkpoints.specs import ModelSpec
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.grid import Known
from fourreal.models.build import fresh_params
from fourreal.nn.kernels import resolve_kernel
from fourreal.parallel.chips import CHIPS
from fourreal.sampling.pipeline import GridPipeline
from fourreal.training.config import load_config
from fourreal.training.cost import compiled_bytes, matmul_flops
from fourreal.training.state import fresh_state
from fourreal.training.step import make_train_step


def seconds(function, repeats: int) -> float:
    """Median time of a call after one warm-up; the call must wait for its result."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def top_costs(function: Callable[[], object], count: int) -> list[dict]:
    """The operations that take most of a call's time, by name without its number, from JAX's profiler.

    Of a GPU or TPU the time on the device; of a CPU that of all its threads, of operations within operations twice.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    seconds, calls = collections.Counter(), collections.Counter()
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for line in (line for plane in devices or planes for line in plane.lines):
        if (devices and line.name.startswith("Stream")) or line.name.startswith(("XLA Ops", "tf_XLA")):
            for event in line.events:
                name = re.sub(r"[._\d]+$", "", event.name)
                seconds[name] += event.duration_ns / 1e9
                calls[name] += 1
    seconds = {name: taken for name, taken in seconds.items() if "Execut" not in name}
    total = sum(seconds.values())
    dearest = sorted(seconds, key=seconds.get, reverse=True)[:count]
    return [
        {
            "name": name[:80],
            "calls": calls[name],
            "s": round(seconds[name], 4),
            "share": round(seconds[name] / total, 3),
        }
        for name in dearest
    ]


def utilization(device: jax.Device, flops: float, taken: float) -> float | None:
    """MFU: the share of the chip's bfloat16 peak; None for a chip that is not in the table."""
    kind = device.device_kind.lower().replace("h200", "h100")  # they compute alike
    chip = next((chip for name, chip in CHIPS.items() if name in kind), None)
    return chip and round(flops / taken / chip.flops, 3)


def kernel_calls(compiled: jax.stages.Compiled) -> dict[str, int]:
    """How often a program calls cuDNN's attention and Pallas kernels of a TPU."""
    text = compiled.as_text()
    return {name: text.count(name) for name in ("__cudnn$fmha", "tpu_custom_call")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="height and width of a frame")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="grids a step; none: the config's")
    parser.add_argument("--attention", help="kernel that must be used, or it ends; none: the platform's")
    parser.add_argument("--remat", help="rematerialization policy; none: the config's")
    parser.add_argument("--top", type=int, default=5, help="how many of the dearest operations to name")
    options = parser.parse_args()

    config = load_config(options.config)
    if options.remat:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=options.remat))
    if options.attention:
        config = dataclasses.replace(config, attention=dataclasses.replace(config.attention, kernel=options.attention))
    batch_size = options.batch or config.data.batch_size
    spec = ModelSpec(config.model, config.grid, config.data.views, config.data.times, tuple(options.size))
    shape = (config.data.views, config.data.times, *options.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    given = np.zeros(shape[:2], bool)
    given[0], given[:, 0] = True, True
    batch = {
        "frames": np.broadcast_to(frames, (batch_size, *shape)),
        "given": np.broadcast_to(given, (batch_size, *given.shape)),
        "conditions": {},
    }
    params = fresh_params(spec.model, spec.grid, 0)
    device = jax.devices()[0]
    kernel = resolve_kernel(config.attention, device.platform, config.model.head_size, config.model.dtype)
    step = make_train_step(make_denoiser(spec.model, spec.grid, kernel), config)
    state = fresh_state(params, config)
    plain = make_denoiser(dataclasses.replace(spec.model, remat="none"), spec.grid)
    flops = matmul_flops(make_train_step(plain, config), state, batch)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

    def train() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    train_s = seconds(train, options.repeats)
    train_top = top_costs(train, options.top)
    state = None  # makes room
    pipe = GridPipeline(spec, fresh_params(spec.model, spec.grid, 0), attention=config.attention)
    sample_s = seconds(lambda: pipe(frames, given, steps=options.steps), options.repeats)
    x, sigma = jax.ShapeDtypeStruct((1, *shape), np.float32), jax.ShapeDtypeStruct((1,), np.float32)
    known = Known(x, jax.ShapeDtypeStruct((1, *given.shape), bool))
    sample_flops = options.steps * matmul_flops(plain, pipe.params, x, sigma, known, {})
    report = {
        "config": options.config,
        "device": device.device_kind,
        "kernel": str(kernel),
        "kernel_calls": kernel_calls(compiled),
        "remat": config.model.remat,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": batch_size,
        "train_step_s": round(train_s, 3),
        "train_grids_per_s": round(batch_size / train_s, 3),
        "train_gflop": round(flops / 1e9, 1),
        "train_gflop_per_s": round(flops / 1e9 / train_s, 1),
        "train_mfu": utilization(device, flops, train_s),
        "train_top": train_top,
        "train_mib": compiled_bytes(compiled)["total"] >> 20,
        "sample_steps": options.steps,
        "sample_s": round(sample_s, 3),
        "sample_gflop_per_s": round(sample_flops / 1e9 / sample_s, 1),
        "sample_mfu": utilization(device, sample_flops, sample_s),
        "sample_top": top_costs(lambda: pipe(frames, given, steps=options.steps), options.top),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
