"""Wan's encoder and decoder in JAX against diffusers' in PyTorch, on a CPU, in one run: frames a second and peak memory.

python benchmarks/wan_vae.py                                            # a small network, a few seconds
python benchmarks/wan_vae.py --generation 2.2 --base-dim 160 --frames 17 --size 288 512 --rounds 3

Needs `torch` and `diffusers` beside the project (`pip install torch==2.13.0 diffusers==0.42.1`); without them it measures ours
alone. Each contender has a process of its own and gets the same random weights and the same clip, and both must give the same
numbers. They take turns, so that a disturbance meets both: each round calls each twice and times the second call. Memory is
what the process's peak rose by during its first encoding and decoding, XLA's compiler included.
"""

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fourreal.codecs.wan import WAN_2_1, WAN_2_2, WanVAEConfig
from fourreal.codecs.wan.network import decode, encode
from fourreal.codecs.wan.parameters import from_diffusers, parameter_table

GENERATIONS = {"2.1": WAN_2_1, "2.2": WAN_2_2}
TOLERANCE = 1e-4  # largest difference, over the largest number
contender: "Ours | Diffusers"  # of this process


def random_state(config: WanVAEConfig) -> dict[str, np.ndarray]:
    """Weights under diffusers' names, of a size at which numbers stay near 1."""
    rng, state = np.random.default_rng(0), {}
    for entry in parameter_table(config).values():
        noise = rng.standard_normal(entry.shape, np.float32)
        state[entry.theirs] = (
            1 + 0.2 * noise if entry.theirs.endswith("gamma") else noise / np.prod(entry.shape[1:]) ** 0.5
        )
    return {name: value.astype(np.float32) for name, value in state.items()}


class Ours:
    """The codec's functions, jitted."""

    def __init__(self, config: WanVAEConfig):
        self.parameters = jax.tree.map(jnp.asarray, from_diffusers(random_state(config), config))
        self._encode = jax.jit(lambda p, x: encode(p, config, x))
        self._decode = jax.jit(lambda p, x: decode(p, config, x))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.asarray(self._encode(self.parameters, frames))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return np.asarray(self._decode(self.parameters, latents)).clip(-1, 1)


class Diffusers:
    """`AutoencoderKLWan`, eager, as its pipelines call it."""

    def __init__(self, config: WanVAEConfig):
        import torch
        from diffusers import AutoencoderKLWan

        patches = {} if config.patch_size == 1 else {"patch_size": config.patch_size}
        channels = {"in_channels": config.patch_channels, "out_channels": config.patch_channels}
        sizes = dataclasses.asdict(config) | channels | {"scale_factor_spatial": config.space_factor}
        sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
        del sizes["patch_size"]
        self.torch, self.vae = torch, AutoencoderKLWan(**sizes, **patches).eval()
        self.vae.load_state_dict({name: torch.tensor(value) for name, value in random_state(config).items()})
        self.mean, self.std = (
            torch.tensor(value).view(1, -1, 1, 1, 1) for value in (config.latents_mean, config.latents_std)
        )

    def encode(self, frames: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            moments = self.vae.encode(self.torch.tensor(frames).permute(0, 4, 1, 2, 3)).latent_dist.mode()
            return ((moments - self.mean) / self.std).permute(0, 2, 3, 4, 1).numpy()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            moments = self.torch.tensor(latents).permute(0, 4, 1, 2, 3) * self.std + self.mean
            return self.vae.decode(moments).sample.permute(0, 2, 3, 4, 1).numpy()


def begin(kind: type, config: WanVAEConfig) -> None:
    """Makes this process the contender's."""
    global contender
    jax.config.update("jax_platforms", "cpu")
    contender = kind(config)


def first_calls(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(latents, frames of them, by how many MiB this process's peak rose)."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    latents = contender.encode(frames)
    decoded = contender.decode(latents)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return latents, decoded, (peak - resident) / 2**20


def second_call(method: str, x: np.ndarray) -> float:
    """Seconds of a second call; the first takes the caches back that the other was given."""
    run = getattr(contender, method)
    run(x)
    began = time.perf_counter()
    run(x)
    return time.perf_counter() - began


def compare(config: WanVAEConfig, frames: np.ndarray, rounds: int) -> dict:
    """Frames a second of either and of both together."""
    kinds = [Ours, Diffusers] if importlib.util.find_spec("torch") and importlib.util.find_spec("diffusers") else [Ours]
    spawn = multiprocessing.get_context("spawn")
    own = {kind.__name__: ProcessPoolExecutor(1, spawn, initializer=begin, initargs=(kind, config)) for kind in kinds}
    first = {name: process.submit(first_calls, frames).result() for name, process in own.items()}
    latents, decoded, _ = first["Ours"]
    for name, (their_latents, their_frames, _) in first.items():
        for what, ours, theirs in (("latents", latents, their_latents), ("frames", decoded, their_frames)):
            apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
            assert apart < TOLERANCE, f"{name}: {what} are {apart:.1e} apart, expected less than {TOLERANCE}"
    report = {name: {"peak_mib": round(first[name][2])} for name in own}
    for method, x in (("encode", frames), ("decode", latents)):
        seconds = {name: [] for name in own}
        for _ in range(rounds):
            for name, process in own.items():
                seconds[name].append(process.submit(second_call, method, x).result())
        for name, values in seconds.items():
            report[name][f"{method}_frames_per_second"] = round(frames.shape[1] / statistics.median(values), 2)
    for process in own.values():
        process.shutdown()
    if "Diffusers" in report:
        report["ours_over_diffusers"] = {
            name: report["Ours"][name] / report["Diffusers"][name] for name in report["Ours"]
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generation", choices=GENERATIONS, default="2.1")
    parser.add_argument("--base-dim", type=int, default=32, help="channels at full resolution; 96 and 160 as released")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 96), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the report here")
    options = parser.parse_args()
    released = GENERATIONS[options.generation]
    decoder = options.base_dim * released.decoder_base_dim // released.base_dim
    config = dataclasses.replace(released, base_dim=options.base_dim, decoder_base_dim=decoder)
    clip = np.random.default_rng(0).uniform(-1, 1, (1, options.frames, *options.size, 3)).astype(np.float32)
    about = {"generation": options.generation, "base_dim": options.base_dim, "clip": clip.shape}
    report = json.dumps(about | compare(config, clip, options.rounds), indent=2)
    print(report)
    if options.out:
        options.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
