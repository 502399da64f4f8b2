"""A training step and a sampling step of ours against an equal model in PyTorch, eager and compiled, in one run.

python benchmarks/against_torch.py configs/nano.py --out benchmarks/results/cpu_against_torch.json
python benchmarks/against_torch.py configs/tiny.py --batch 2
python benchmarks/against_torch.py configs/large.py --device cuda --size 384 --batch 1 --out benchmarks/results/gpu.json

Needs `torch` beside the project (`pip install -e '.[train]' torch`) and, for `torch.compile`, a C++ compiler. First it loads
the same random parameters into both and compares sampled grids, gradients and the losses of three updates. Then all take turns:
each round times each of them once, so a disturbance meets all alike. All use all cores, the config's precision and their
defaults. On a CPU ours keeps the matmuls' results for backward, as nano does; tiny's batch of 16 is meant for an accelerator.
On a GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false, so that PyTorch finds memory.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from torch_two_stream import Sampler, Trainer, TwoStream, in_torch, load_ours

from fourreal.config import TrainConfig, load_config
from fourreal.diffusion import flow
from fourreal.diffusion.samplers import cell_noise, noise_levels
from fourreal.models.build import Params, fresh_params, make_forward, split_model
from fourreal.models.checkpoints import ModelSpec
from fourreal.models.kernels import resolve_kernel
from fourreal.models.weights import flat_names
from fourreal.sampling.pipeline import GridPipeline
from fourreal.training.state import fresh_state
from fourreal.training.step import NOISE, SIGMA, batch_loss, example_keys, make_train_step

SAMPLING_STEPS = 8
# How far a sampled pixel (of 255), a gradient (of its parameter's largest) and a loss may be apart, by precision. Those of
# bfloat16 are guesses: no GPU has run it.
TOLERANCES = {"float32": (1, 1e-4, 1e-4), "bfloat16": (16, 0.1, 1e-2)}


class Ours:
    """Our training step and sampler, as `train.py` and `sample.py` run them."""

    def __init__(self, config: TrainConfig, params: Params, frames: np.ndarray, given: np.ndarray):
        kernel = resolve_kernel(config.attention, jax.devices()[0].platform, config.model.head_size, config.model.dtype)
        graph, _ = split_model(config.model, config.grid, kernel)
        self.config, self.params, self.forward = config, params, make_forward(graph)
        self.batch = {"frames": frames, "given": given}
        self.state = fresh_state(jax.tree.map(np.copy, params), config)
        step = make_train_step(self.forward, config)
        self._step = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()
        spec = ModelSpec(config.model, config.grid, *frames.shape[1:4], config.sigma.shift)
        self._pipeline = GridPipeline(spec, jax.device_put(params))

    def train(self) -> float:
        self.state, metrics = self._step(self.state, jax.device_put(self.batch))
        return float(metrics["loss"])  # waits for the step

    def sample(self) -> np.ndarray:
        return self._pipeline(self.batch["frames"][0], self.batch["given"][0], steps=SAMPLING_STEPS)

    def draws(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The noise levels and the noise of a training step."""
        shape = self.batch["frames"].shape
        sigma_keys, noise_keys = (example_keys(self.config.seed, purpose, step, shape[0]) for purpose in (SIGMA, NOISE))
        sigma = jax.vmap(lambda key: flow.sample_sigma(key, self.config.sigma))(sigma_keys)
        return np.array(sigma), np.array(jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(noise_keys))

    def gradients(self, sigma: np.ndarray, eps: np.ndarray) -> dict[str, np.ndarray]:
        """The gradient of the mean loss by every parameter."""

        def loss(params: Params) -> jax.Array:
            arguments = (*self.batch.values(), sigma, eps, self.config.model.prediction)
            return batch_loss(self.forward, params, *arguments).mean()

        return {name: np.asarray(leaf) for name, leaf in flat_names(jax.jit(jax.grad(loss))(self.params)).items()}


class Torch:
    """The same in PyTorch."""

    def __init__(self, ours: Ours, compiled: bool):
        self.batch = {name: torch.tensor(value) for name, value in ours.batch.items()}
        self.levels = torch.tensor(noise_levels(SAMPLING_STEPS, ours.config.sigma.shift))
        size = ours.batch["frames"].shape[3]
        trained, sampled = TwoStream(ours.config, size), TwoStream(ours.config, size)
        for model in (trained, sampled):
            load_ours(model, flat_names(ours.params))
        self.trainer, self.sampler = Trainer(trained, compiled), Sampler(sampled, compiled)

    def train(self, *drawn: np.ndarray) -> float:
        return self.trainer.step(*self.batch.values(), tuple(map(torch.tensor, drawn)))

    def sample(self, *noise: np.ndarray) -> np.ndarray:
        frames, given = (value[0] for value in self.batch.values())
        return self.sampler(frames, given, *map(torch.tensor, noise), levels=self.levels).numpy(force=True)

    def gradients(self, sigma: np.ndarray, eps: np.ndarray) -> dict[str, np.ndarray]:
        """The gradient of the mean loss by every parameter."""
        self.trainer.loss(*self.batch.values(), torch.tensor(sigma), torch.tensor(eps)).backward()
        found = {name: leaf.grad.numpy(force=True) for name, leaf in self.trainer.model.named_parameters()}
        self.trainer.adamw.zero_grad()
        return found


def prove_equal(ours: Ours, theirs: dict[str, Torch]) -> None:
    """Raises AssertionError where sampled grids, gradients or losses of three updates differ."""
    views, times, *frame = ours.batch["frames"].shape[1:]
    most_levels, most_gradient, most_loss = TOLERANCES[ours.config.model.dtype]
    grid, noise = ours.sample(), np.array(cell_noise(0, views, times, tuple(frame)))[None]
    gradients = in_torch(ours.gradients(*ours.draws(0)))
    for name, contender in theirs.items():
        apart = np.abs(contender.sample(noise).astype(int) - grid)
        assert apart.max() <= most_levels, f"{name}: a sampled pixel is {apart.max()} of 255 away"
        for parameter, found in contender.gradients(*ours.draws(0)).items():
            wanted = gradients[parameter]
            apart = np.abs(found - wanted).max() / np.abs(wanted).max()
            assert apart < most_gradient, (
                f"{name}: the gradient of {parameter} is {apart:.1e} of its largest value away"
            )
    for step in range(3):
        loss = ours.train()
        for name, contender in theirs.items():
            apart = abs(contender.train(*ours.draws(step)) / loss - 1)
            assert apart < most_loss, f"{name}: the loss of step {step} is {apart:.1e} away"


def take_turns(contenders: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round that is not counted."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


def compare(config: TrainConfig, options: argparse.Namespace) -> dict:
    """The times of one config's training step and sampling step."""
    batch = options.batch or config.data.batch_size
    if options.device == "cpu":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="matmuls"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))
    shape = (batch, config.data.views, config.data.times)
    rng, given = np.random.default_rng(0), np.zeros(shape, bool)
    given[:, 0], given[:, :, 0] = True, True
    frames = rng.integers(0, 256, (*shape, options.size, options.size, 3), np.uint8)
    params = fresh_params(config.model, config.grid, 0)
    # noise on all parameters: none is zero, so that every path carries a signal
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape, np.float32), params)
    ours = Ours(config, params, frames, given)
    theirs = {"torch eager": Torch(ours, compiled=False), "torch compiled": Torch(ours, compiled=True)}
    prove_equal(ours, theirs)
    report = {"config": config.name, "batch": batch, "size": options.size}
    contenders = {"ours": ours, **theirs}
    for what, runs, share in (
        ("training step", {name: contender.train for name, contender in contenders.items()}, 1),
        ("sampling step", {name: contender.sample for name, contender in contenders.items()}, SAMPLING_STEPS),
    ):
        seconds = {name: [t / share for t in times] for name, times in take_turns(runs, options.rounds).items()}
        report[what] = {
            name: {"median_s": round(statistics.median(times), 4), "min_s": round(min(times), 4)}
            for name, times in seconds.items()
        }
        for kind in ("median_s", "min_s"):
            fastest = min(report[what][name][kind] for name in theirs)
            report[what]["ours"][f"speedup_{kind[:-2]}"] = round(fastest / report[what]["ours"][kind], 2)
        print(config.name, what, json.dumps(report[what]), flush=True)
    return report


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="pixels of a frame's side")
    parser.add_argument("--batch", type=int, help="grids a step; none: the config's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    platform_of_ours = jax.devices()[0].platform
    if (platform_of_ours == "gpu") != (options.device == "cuda"):
        parser.error(f"--device {options.device}, but JAX runs on {platform_of_ours}: both must use the same")
    torch.set_default_device(options.device)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "configs": [compare(load_config(path), options) for path in options.configs],
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
