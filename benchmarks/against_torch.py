"""A training step and a sampling step of ours against an equal model in PyTorch, eager and compiled, in one run.

python benchmarks/against_torch.py configs/nano.py --out benchmarks/results/cpu_against_torch.json
python benchmarks/against_torch.py configs/tiny.py --batch 2
python benchmarks/against_torch.py configs/large.py --device cuda --size 384 384 --batch 1 --out benchmarks/results/gpu.json

Needs `torch` beside the project (`pip install -e ".[train]" torch`) and, for `torch.compile`, a C++ compiler. Each contender
has a process of its own, as users run them. First a cut of the config (fp32, two layers, small frames) gets the same random
parameters in all, and sampled grids, gradients and the losses of three updates must be equal. How far they are apart in the
config's own size and precision goes into the report. Then all take turns, so that a disturbance meets all alike: each round
calls each of them twice and times the second call. On a GPU, and with --alone, each has all the memory to itself, one after the
other. All use all cores, the config's precision and their defaults, but for huge pages, which `train.py` asks for and PyTorch
gets here, too. On a CPU ours keeps what backward needs and writes its layers out, as nano and PyTorch do; tiny's own settings,
for a batch of 16, are meant for an accelerator.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch_two_stream import Sampler, Trainer, TwoStream, in_torch, load_ours
from training import kernel_calls

from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.weights import flat_names
from fourreal.diffusion import flow
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.diffusion.noise import cell_noise
from fourreal.diffusion.samplers import noise_levels
from fourreal.grid import to_unit
from fourreal.host.huge_pages import take_huge_pages
from fourreal.models.build import Params, fresh_params
from fourreal.nn.kernels import AttentionConfig, resolve_kernel
from fourreal.sampling.pipeline import GridPipeline
from fourreal.training.config import TrainConfig, load_config
from fourreal.training.state import fresh_state
from fourreal.training.step import NOISE, SIGMA, batch_loss, example_keys, make_train_step

SAMPLING_STEPS = 8
UPDATES = 3  # whose losses are compared
contender: "Ours | Torch"  # of this process
TIMED = {"training step": ("train", 1), "sampling step": ("sample", SAMPLING_STEPS)}  # what: (a call, steps in it)
# How far a sampled pixel (of 255), a gradient (of its parameter's largest) and a loss may be apart in fp32.
TOLERANCES = {"pixels": 1, "gradients": 1e-4, "losses": 1e-4}


@dataclasses.dataclass(frozen=True)
class Task:
    """What every contender is given."""

    config: TrainConfig
    params: Params
    frames: np.ndarray
    given: np.ndarray

    def draws(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The noise levels and the noise of a training step."""
        shape = self.frames.shape
        sigma_keys, noise_keys = (example_keys(self.config.seed, purpose, step, shape[0]) for purpose in (SIGMA, NOISE))
        sigma = jax.vmap(lambda key: flow.sample_sigma(key, self.config.sigma))(sigma_keys)
        return np.array(sigma), np.array(jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(noise_keys))


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a contender computes from the task's parameters."""

    pixels: np.ndarray
    """a sampled grid"""
    gradients: dict[str, np.ndarray]
    """of the mean loss by every parameter, as PyTorch names it"""
    losses: list[float]
    """of the first updates"""


class Ours:
    """Our training step and sampler, as `train.py` and `sample.py` run them."""

    def __init__(self, task: Task):
        config = task.config
        kernel = resolve_kernel(config.attention, jax.devices()[0].platform, config.model.head_size, config.model.dtype)
        self.task, self.denoiser = task, make_denoiser(config.model, config.grid, kernel)
        self.batch = {"frames": task.frames, "given": task.given, "conditions": {}}
        self.state = fresh_state(jax.tree.map(np.copy, task.params), config)
        step = make_train_step(self.denoiser, config)
        self._step = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()
        calls = kernel_calls(self._step)
        self.about = {"device": jax.devices()[0].device_kind, "kernel": str(kernel), "kernel_calls": calls}
        views, times, *size, _ = task.frames.shape[1:]
        spec = ModelSpec(config.model, config.grid, views, times, tuple(size), config.sigma.shift)
        self._pipeline = GridPipeline(spec, task.params, attention=config.attention)

    def train(self) -> float:
        self.state, metrics = self._step(self.state, jax.device_put(self.batch))
        return float(metrics["loss"])  # waits for the step

    def sample(self) -> np.ndarray:
        return self._pipeline(self.task.frames[0], self.task.given[0], steps=SAMPLING_STEPS)

    def answers(self) -> Answers:
        sigma, eps = self.task.draws(0)

        def loss(params: Params) -> jax.Array:
            return batch_loss(self.denoiser, params, to_unit(self.task.frames), self.batch, sigma, eps).mean()

        gradients = flat_names(jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(self.task.params)))
        return Answers(self.sample(), in_torch(gradients), [self.train() for _ in range(UPDATES)])


class Torch:
    """The same in PyTorch, one module for both."""

    def __init__(self, task: Task, compiled: bool):
        self.task, self.about = task, {}
        self.batch = torch.tensor(task.frames), torch.tensor(task.given)
        self.levels = torch.tensor(noise_levels(SAMPLING_STEPS, task.config.sigma.shift, flow.SIGMA_FLOOR))
        model = TwoStream(task.config, task.frames.shape[3:5])
        load_ours(model, flat_names(task.params))
        self.trainer, self.sampler = Trainer(model, compiled), Sampler(model, compiled)

    def train(self, *drawn: np.ndarray) -> float:
        return self.trainer.step(*self.batch, tuple(map(torch.tensor, drawn)))

    def sample(self, *noise: np.ndarray) -> np.ndarray:
        frames, given = (value[0] for value in self.batch)
        return self.sampler(frames, given, *map(torch.tensor, noise), levels=self.levels).numpy(force=True)

    def answers(self) -> Answers:
        views, times, *frame = self.task.frames.shape[1:]
        grid = self.sample(np.array(cell_noise(0, views, times, tuple(frame)))[None])
        draws = [self.task.draws(step) for step in range(UPDATES)]
        self.trainer.loss(*self.batch, *map(torch.tensor, draws[0])).backward()
        gradients = {name: leaf.grad.numpy(force=True) for name, leaf in self.trainer.model.named_parameters()}
        self.trainer.adamw.zero_grad()
        return Answers(grid, gradients, [self.train(*drawn) for drawn in draws])


CONTENDERS = {
    "ours": Ours,
    "torch eager": functools.partial(Torch, compiled=False),
    "torch compiled": functools.partial(Torch, compiled=True),
}
THEIRS = [name for name in CONTENDERS if name != "ours"]


def make_task(config: TrainConfig, size: tuple[int, int]) -> Task:
    """Noise for frames and on all parameters: none is zero, so that every path carries a signal."""
    shape = (config.data.batch_size, config.data.views, config.data.times)
    rng, given = np.random.default_rng(0), np.zeros(shape, bool)
    given[:, 0], given[:, :, 0] = True, True
    frames = rng.integers(0, 256, (*shape, *size, 3), np.uint8)
    params = fresh_params(config.model, config.grid, 0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape, np.float32), params)
    return Task(config, params, frames, given)


def differences(found: Answers, wanted: Answers) -> dict[str, dict[str, float]]:
    """How far answers are apart: pixels (of 255), gradients (of each parameter's largest), losses (relative)."""
    apart = {
        "pixels": np.abs(found.pixels.astype(int) - wanted.pixels),
        "gradients": [
            np.abs(found.gradients[name] - leaf).max() / np.abs(leaf).max() for name, leaf in wanted.gradients.items()
        ],
        "losses": np.abs(np.array(found.losses) / wanted.losses - 1),
    }
    return {kind: {"max": float(np.max(values)), "mean": float(np.mean(values))} for kind, values in apart.items()}


def begin(name: str, config: TrainConfig, size: tuple[int, int], device: str, exact: bool = False) -> None:
    """Makes this process the contender's; `exact`: matmuls of fp32 in fp32 on a GPU, too."""
    global contender
    jax.config.update("jax_platforms", "cuda" if device == "cuda" and name == "ours" else "cpu")
    jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
    torch.set_default_device(device)
    contender = CONTENDERS[name](make_task(config, size))


def answer() -> tuple[Answers, dict]:
    """This process's contender's answers and what it tells about itself."""
    return contender.answers(), contender.about


def second_call(method: str) -> float:
    """Seconds of a second call; the first takes the caches back that the others were given."""
    run = getattr(contender, method)
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def process(*of: Any) -> ProcessPoolExecutor:
    """A process of its own for a contender: the arguments of `begin`."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin, initargs=of)


def prove_equal(config: TrainConfig, size: tuple[int, int], device: str) -> None:
    """Raises AssertionError where the contenders' answers differ on a cut of the config: fp32, two layers, 4 x 4 patches."""
    model = dataclasses.replace(config.model, dtype="float32", depth=min(config.model.depth, 2))
    config = dataclasses.replace(config, model=model, attention=AttentionConfig())
    answers, small = {}, tuple(min(side, 4 * model.patch[1]) for side in size)
    for name in CONTENDERS:
        with process(name, config, small, device, True) as own:
            answers[name], _ = own.submit(answer).result()
    for name in THEIRS:
        for kind, apart in differences(answers[name], answers["ours"]).items():
            most = TOLERANCES[kind]
            assert apart["max"] <= most, f"{name}: {kind} are up to {apart['max']:.1e} apart in fp32, at most {most}"


def compare(config: TrainConfig, options: argparse.Namespace) -> dict:
    """The times of one config's training step and sampling step."""
    batch, size, device = options.batch or config.data.batch_size, tuple(options.size), options.device
    if device == "cpu":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none", unroll=True))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))
    prove_equal(config, size, device)
    report = {"config": config.name, "batch": batch, "size": size, "differences": {}}
    answers, seconds = {}, {what: {name: [] for name in CONTENDERS} for what in TIMED}
    alone = options.alone or device == "cuda"
    for names in [[name] for name in CONTENDERS] if alone else [list(CONTENDERS)]:
        with contextlib.ExitStack() as stack:
            processes = {name: stack.enter_context(process(name, config, size, device)) for name in names}
            for name, own in processes.items():
                answers[name], about = own.submit(answer).result()
                report |= about
            for (what, (method, _)), _ in itertools.product(TIMED.items(), range(options.rounds)):
                for name, own in processes.items():
                    seconds[what][name].append(own.submit(second_call, method).result())
    for name in THEIRS:
        report["differences"][name] = differences(answers[name], answers["ours"])
    for what, (_, steps) in TIMED.items():
        report[what] = {
            name: {"median_s": round(statistics.median(times) / steps, 4), "min_s": round(min(times) / steps, 4)}
            for name, times in seconds[what].items()
        }
        for kind in ("median_s", "min_s"):
            fastest = min(report[what][name][kind] for name in THEIRS)
            report[what]["ours"][f"speedup_{kind[:-2]}"] = round(fastest / report[what]["ours"][kind], 2)
    print(json.dumps(report), flush=True)
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
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="height and width of a frame in pixels")
    parser.add_argument("--batch", type=int, help="grids a step; none: the config's")
    parser.add_argument("--alone", action="store_true", help="one after the other, as always on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    take_huge_pages()
    report = {
        "command": " ".join(["python", *sys.argv]),
        "processor": processor(),
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
