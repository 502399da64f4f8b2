"""Rows and numbers of a plan's table."""

import math
import sys
from collections import defaultdict

from fourreal.parallel.chips import Topology
from fourreal.planning.collectives import KINDS, Collective

OF_GPUS = (
    "memory by formula, collectives as XLA cuts the program for CPUs: no GPU compiler",
    "a program gets 3/4 of a card, as JAX takes by default; XLA_PYTHON_CLIENT_MEM_FRACTION=.95 gives more",
)


def say(line: str) -> None:
    """Prints a line of progress to stderr; stdout gets the table alone."""
    print(line, file=sys.stderr, flush=True)


def collective_rows(collectives: list[Collective]) -> list[tuple[str, str]]:
    """One row a kind: how often a step, and the bytes of one device."""
    sums = defaultdict(lambda: [0, 0, 0.0, 0.0])
    for each in collectives:
        row = sums[each.between_slices, KINDS.index(each.kind)]
        for place, value in enumerate((1, each.payload, each.sent, 0 if each.overlaps else each.sent)):
            row[place] += each.count * value
    rows = [
        f"{count:>6,} {KINDS[kind]}{' between slices' if between else ''}: {binary(payload)} a device, {binary(sent)} sent"
        + (f", {binary(exposed)} of it exposed" if exposed else "")
        for (between, kind), (count, payload, sent, exposed) in sorted(sums.items())
    ]
    return [("" if place else "collectives", row) for place, row in enumerate(rows or ["none"])]


def binary(count: float) -> str:
    """Bytes in KiB, MiB, GiB or TiB."""
    power = min(max(int(math.log2(max(count, 1)) // 10), 1), 4)
    return f"{count / 2 ** (10 * power):.2f} {' KMGT'[power]}iB"


def decimal(count: float) -> str:
    """A number with its SI prefix."""
    power = min(int(math.log10(max(count, 1)) // 3), 6)
    return f"{count / 10 ** (3 * power):.3g} {' kMGTPE'[power]}"


def assumed(topology: Topology) -> str:
    """The rates assumed of a chip, and the bandwidths within and between hosts or slices."""
    chip = topology.chip
    inside = (
        f"{chip.link / 1e9:.0f} GB/s a link and direction"
        if chip.sides
        else f"{chip.link / 1e9:.0f} GB/s within a host"
    )
    between = f", {chip.network / 1e9:.1f} GB/s a chip between {'slices' if chip.sides else 'hosts'}"
    links = inside + (between if topology.slices > 1 or not chip.sides else "")
    return f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm_rate / 1e9:.0f} GB/s of memory, {links}"
