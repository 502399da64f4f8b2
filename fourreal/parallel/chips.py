"""Data of accelerators, from their makers' pages, and the topologies that names like v5e:4x4 stand for.

Sources: the pages TPU v4, TPU v5e, TPU v5p, TPU v6e and TPU7x of Google Cloud's documentation; links and the data-centre
network from "How to Scale Your Model" (Austin et al., part 2), whose figures are what links reach, about a tenth below the
pages'; NVIDIA's H100 data sheet (SXM, dense) and white paper of the Ada architecture (dense, sums in fp32; PCIe, and a
network of 25 Gbit/s). `usable` is what XLA's TPU compiler (libtpu 0.0.42) lets a program take; of a GPU, whose driver shows
79 GiB, or 23.5 of the RTX 4090's, the three quarters that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
"""

import dataclasses
import math
import re

from fourreal.errors import UserError

GB, GIB = 10**9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip; rates are per second. A tpu7x has two JAX devices, which share all that is said here of the chip."""

    name: str
    flops: float
    """bfloat16 matmuls, dense"""
    hbm: int
    """bytes of memory"""
    usable: int
    """bytes of it that a program can take"""
    hbm_rate: float
    """bytes from and to memory"""
    link: float
    """bytes over one link, one way; for a GPU all its links together"""
    sides: int
    """axes of its torus, with two links each; 0 for a switch that links all with all"""
    ring: int
    """an axis of the torus wraps around where its length is a multiple of this"""
    network: float
    """bytes over the network between slices or nodes, a chip's share of its host's"""
    host: int
    """chips of a host"""
    devices: int = 1
    """JAX devices of a chip"""
    kinds: tuple[str, ...] = ()
    """what JAX calls such a device, or how that begins"""
    overlap: str = "fusions"
    """how collectives run beside what is computed, see `overlap.py`"""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, int(31.75 * GIB), 1228 * GB, 45 * GB, 3, 4, 6.25 * GB, 4, kinds=("TPU v4",)),
        Chip(
            "v5e",
            197e12,
            16 * GIB,
            int(15.75 * GIB),
            819 * GB,
            45 * GB,
            2,
            16,
            3.125 * GB,
            8,
            kinds=("TPU v5 lite", "TPU v5e"),
        ),
        Chip(
            "v5p",
            459e12,
            96 * GIB,
            int(95.74 * GIB),
            2765 * GB,
            90 * GB,
            3,
            4,
            6.25 * GB,
            4,
            kinds=("TPU v5p", "TPU v5"),
        ),
        Chip(
            "v6e",
            918e12,
            32 * GIB,
            int(31.25 * GIB),
            1638 * GB,
            90 * GB,
            2,
            16,
            12.5 * GB,
            8,
            kinds=("TPU v6 lite", "TPU v6e"),
            overlap="sparse_cores",
        ),
        Chip(
            "tpu7x",
            2307e12,
            192 * GIB,
            int(189.5 * GIB),
            7380 * GB,
            90 * GB,
            3,
            4,
            12.5 * GB,
            4,
            devices=2,
            kinds=("TPU7x", "TPU v7x"),
            overlap="sparse_cores",
        ),
        Chip(
            "h100",
            989e12,
            80 * GB,
            int(0.75 * 79 * GIB),
            3350 * GB,
            450 * GB,
            0,
            1,
            50 * GB,
            8,
            kinds=("NVIDIA H100",),
            overlap="scheduler",
        ),
        Chip(
            "rtx4090",
            165e12,
            24 * GIB,
            int(0.75 * 23.5 * GIB),
            1008 * GB,
            32 * GB,
            0,
            1,
            3.125 * GB,
            8,
            kinds=("NVIDIA GeForce RTX 4090",),
            overlap="scheduler",
        ),
    )
}


def chip_of(kind: str) -> Chip | None:
    """The chip of a device whose `device_kind` is this; None for one that is not listed."""
    fits = [(len(start), chip.name) for chip in CHIPS.values() for start in chip.kinds if kind.startswith(start)]
    return CHIPS[max(fits)[1]] if fits else None


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of a kind: `shape` in each of `slices` slices; a GPU's shape is their number."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Devices as JAX counts them."""
        return self.chips * self.chip.devices

    @property
    def name(self) -> str:
        """`v5e:4x4`, as it was given."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def wraps(self, side: int) -> bool:
        """Whether an axis of the torus closes to a ring."""
        return self.chip.sides > 0 and self.shape[side] % self.chip.ring == 0

    def larger(self) -> "Topology":
        """The next one of the same kind: the shortest axis twice as long."""
        shortest = min(range(len(self.shape)), key=lambda side: (self.shape[side], -side))
        shape = tuple(2 * size if side == shortest else size for side, size in enumerate(self.shape))
        return dataclasses.replace(self, shape=shape)


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology of such a name, `v5e:4x4`, `v5p:2x2x2` or `h100:8`; raises ValueError for one that there is not."""
    kind, _, shape = name.lower().partition(":")
    if kind not in CHIPS:
        raise UserError(f"topology '{name}': there is no chip '{kind}'; known: {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    sides = chip.sides or 1
    example = "x".join("422"[:sides][::-1]) if chip.sides else "8"
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape) or shape.count("x") + 1 != sides:
        what = f"{sides} lengths, as {kind}:{example}" if chip.sides else f"a number of GPUs, as {kind}:{example}"
        raise UserError(f"topology '{name}': give {what}")
    if slices < 1:
        raise UserError(f"slices is {slices}: give 1 or more")
    if slices > 1 and not chip.sides:
        raise UserError(f"slices is {slices}: only TPUs come in slices, give all GPUs together, as {kind}:16")
    return Topology(chip, tuple(int(size) for size in shape.split("x")), slices)
