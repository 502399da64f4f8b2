"""What a pretrained base of full size costs: converting Wan 2.1 of 1.3 B, and reading it cut over eight devices.

python benchmarks/wan_base.py --folder /tmp/wan_base          # 5.7 GB of disk, 4 GB of memory, minutes
python benchmarks/wan_base.py --depth 2                       # a small one, in a temporary folder

The checkpoint is random numbers in diffusers' layout, bf16, in three files with an index, written tensor by tensor. The command
`fourreal convert wan` runs in a process of its own, as does the reading, on eight CPU devices, in the numbers in which a frozen
base is held. Memory is watched from outside: all that is resident, and without the pages of mapped files.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from fourreal.checkpoints.specs import describe_checkpoint
from fourreal.checkpoints.wan import Piece, pieces
from fourreal.checkpoints.wan_files import INDEX, diffusers_config
from fourreal.checkpoints.weights import flat_names, open_weights, read_placed
from fourreal.conditions import Text
from fourreal.host.streamed import Streamed, write_streamed
from fourreal.models import VideoDiTConfig
from fourreal.models.build import model_table, split_model
from fourreal.parallel import layout
from fourreal.parallel.mesh import MeshConfig, make_mesh

WAN_1B = VideoDiTConfig(
    1536, 30, 12, 8960, (1, 2, 2), channels=16, conditions=(Text(width=4096),), prediction="u", dtype="bfloat16"
)
FILES, BF16 = 3, np.dtype(ml_dtypes.bfloat16)
MB = 1e6


def random_part(shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """One tensor, of numbers as large as a trained model's."""
    noise = np.random.default_rng(seed).standard_normal(math.prod(shape), np.float32)
    yield (0.02 * noise).astype(BF16)


def write_checkpoint(config: VideoDiTConfig, folder: Path) -> int:
    """A checkpoint in diffusers' layout; returns its bytes."""
    folder.mkdir(parents=True)
    shapes = {name: piece.shape for piece in pieces(config).values() for name in piece.theirs}
    names, total = sorted(shapes), 2 * sum(map(math.prod, shapes.values()))
    files, written = {}, 0
    for name in names:  # about as many bytes to each
        place = min(written * FILES // total, FILES - 1)
        files.setdefault(f"diffusion_pytorch_model-{place + 1:05}-of-{FILES:05}.safetensors", []).append(name)
        written += 2 * math.prod(shapes[name])
    for file, inside in files.items():
        tensors = {
            name: Streamed(shapes[name], BF16, lambda name=name: random_part(shapes[name], names.index(name)))
            for name in inside
        }
        write_streamed(folder / file, tensors, {"format": "pt"})
    listed = {name: file for file, inside in files.items() for name in inside}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": listed}))
    (folder / "config.json").write_text(json.dumps(diffusers_config(config)))
    return total


def bound(table: dict[str, Piece]) -> int:
    """Bytes of the largest tensor with all its layers, and of one tensor of the source."""
    sizes = [2 * math.prod(piece.shape) for piece in table.values()]
    stacked = [size * len(piece.theirs) for size, piece in zip(sizes, table.values(), strict=True)]
    return max(stacked) + max(sizes)


def watched(command: list[str], **environment: str) -> tuple[str, dict[str, float]]:
    """(what a command prints, its seconds and peak MB: of all, and without the pages of mapped files)."""
    began, peak = time.monotonic(), {"resident": 0.0, "own": 0.0}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        said = dict(line.split(":", 1) for line in status.read_text().splitlines())
        for name, key in (("resident", "VmRSS"), ("own", "RssAnon")):
            peak[name] = max(peak[name], int(said.get(key, "0 kB").split()[0]) * 1024 / MB)
        time.sleep(0.01)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return child.stdout.read(), {"seconds": time.monotonic() - began} | peak


def read_cut(folder: Path) -> None:
    """Reads the base of a folder of weights over all devices, and prints what each holds."""
    spec = describe_checkpoint(folder)
    table = model_table(spec.model, spec.grid)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=4, grid=2))), open_weights(folder) as tensors:
        _, shapes = split_model(spec.model, spec.grid)
        places = flat_names(layout.shardings(shapes, table))
        params = {name: read_placed(tensors[name], place, table[name].dtype) for name, place in places.items()}
        jax.block_until_ready(params)
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in params.values():
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in params.values())
    print(json.dumps({"devices": len(held), "most": max(held.values()), "whole": whole}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="new folder for the checkpoints; none: a temporary one")
    parser.add_argument("--depth", type=int, default=WAN_1B.depth, help="layers")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # what the second process does
    options = parser.parse_args()
    if options.read:
        read_cut(options.read)
        return
    config = dataclasses.replace(WAN_1B, depth=options.depth)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="wan-base-"))
    source, base = folder / "source", folder / "base"
    folder.mkdir(parents=True, exist_ok=options.folder is None)  # it goes in the end, so it must be ours
    try:
        began = time.monotonic()
        total = write_checkpoint(config, source)
        print(f"written: {total / MB:,.0f} MB in {FILES} files, {time.monotonic() - began:.0f} s")
        command = [sys.executable, "-m", "fourreal", "convert", "wan", str(source), "--out", str(base)]
        said, took = watched(command)
        print(said.splitlines()[0])
        most = bound(pieces(config)) / MB
        print(
            f"converted: {took['seconds']:.0f} s, at most {took['own']:,.0f} MB of its own, {took['resident']:,.0f} with "
            f"mapped files; the largest stacked tensor and one of the source are {most:,.0f} MB"
        )
        if not options.keep:
            shutil.rmtree(source)
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
        said, took = watched([sys.executable, __file__, "--read", str(base)], XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
        found = json.loads(said.splitlines()[-1])
        print(
            f"read by {found['devices']} devices: {took['seconds']:.0f} s, a device holds {found['most'] / MB:,.0f} MB at most "
            f"of {found['whole'] / MB:,.0f}; the host at most {took['own']:,.0f} MB of its own, {took['resident']:,.0f} with "
            "mapped files"
        )
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
