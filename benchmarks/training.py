"""Time of a training step and of a sampled grid, with FLOPs and memory, for one config on this machine, as JSON.

python benchmarks/training.py configs/nano.py --repeats 5
"""

import argparse
import json
import os
import platform
import statistics
import time

import jax
import numpy as np

from fourreal.config import load_config
from fourreal.models.build import fresh_params, make_forward, split_model
from fourreal.models.checkpoints import ModelSpec
from fourreal.models.kernels import resolve_kernel
from fourreal.sampling.pipeline import GridPipeline
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="sampling steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="grids a step; none: the config's")
    options = parser.parse_args()

    config = load_config(options.config)
    batch_size = options.batch or config.data.batch_size
    spec = ModelSpec(config.model, config.grid, config.data.views, config.data.times, options.size)
    shape = (config.data.views, config.data.times, options.size, options.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    given = np.zeros(shape[:2], bool)
    given[0], given[:, 0] = True, True
    batch = {
        "frames": np.broadcast_to(frames, (batch_size, *shape)),
        "given": np.broadcast_to(given, (batch_size, *given.shape)),
    }
    params = fresh_params(spec.model, spec.grid, 0)
    device = jax.devices()[0]
    kernel = resolve_kernel(config.attention, device.platform, config.model.head_size, config.model.dtype)
    graph, _ = split_model(spec.model, spec.grid, kernel)
    step = make_train_step(make_forward(graph), config)
    state = fresh_state(params, config)
    flops = matmul_flops(step, state, batch)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

    def train() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    train_s = seconds(train, options.repeats)
    pipe = GridPipeline(spec, fresh_params(spec.model, spec.grid, 0))
    sample_s = seconds(lambda: pipe(frames, given, steps=options.steps), options.repeats)
    report = {
        "config": options.config,
        "device": device.device_kind,
        "kernel": str(kernel),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": batch_size,
        "train_step_s": round(train_s, 3),
        "train_grids_per_s": round(batch_size / train_s, 3),
        "train_gflop": round(flops / 1e9, 1),
        "train_gflop_per_s": round(flops / 1e9 / train_s, 1),
        "train_mib": compiled_bytes(compiled)["total"] >> 20,
        "sample_steps": options.steps,
        "sample_s": round(sample_s, 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
