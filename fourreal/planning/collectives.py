"""The collectives of a compiled program: what is exchanged, among which devices, how often.

A collective's `payload` is the larger of its operand and its result on one device, and a device sends

    all-gather, reduce-scatter, all-to-all    payload (n - 1) / n           in groups of n
    all-reduce                              2 payload (n - 1) / n
    collective-permute                        payload

XLA's compiler for TPUs writes some in its own way: a reduce-scatter is a fusion of an all-reduce and a slice; an
asynchronous collective stands in several fusions and counts where it starts; one that a chip's sparse cores run is called,
asynchronously; between slices, chips send to and receive from their hosts. A program's text is in the order in which it
runs: a collective overlaps where something is computed between its start and its end, and else a device waits for it.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from fourreal.planning.hlo import Instruction, Program, type_bytes

COMPUTES = ("fusion", "dot", "convolution", "while", "conditional", "call", "sort", "reduce")
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program; it runs `count` times a step."""

    kind: str
    payload: int
    """bytes on one device, the larger of what goes in and what comes out"""
    groups: tuple[tuple[int, ...], ...]
    """devices, by their place in the mesh of a slice, that exchange among themselves; pairs for collective-permute"""
    between_slices: bool
    """over the network; the groups are then of slices"""
    count: int
    overlaps: bool = False
    """something is computed meanwhile"""

    @property
    def size(self) -> int:
        """Devices of a group."""
        return len(self.groups[0])

    @property
    def sent(self) -> float:
        """Bytes that one device sends, each time."""
        if self.kind == "collective-permute":
            return self.payload
        return (2 if self.kind == "all-reduce" else 1) * self.payload * (self.size - 1) / self.size


def collectives(program: Program) -> list[Collective]:
    """Every collective of the program with how often it runs; equal ones together, the most bytes first."""
    counts, elsewhere = Counter(), {}  # elsewhere: what sparse cores run, and whether something is computed meanwhile
    for name, times in program.runs():
        instructions = program.computations[name]
        for place, instruction in enumerate(instructions):
            started = list(_started(program, name, instruction))
            if not started and instruction.opcode != "call-start":
                continue
            overlaps = _overlaps(program, instruction, instructions[place + 1 :])
            elsewhere |= dict.fromkeys(instruction.called("to_apply", "calls"), overlaps)
            for found in started:
                counts[*found, elsewhere.get(name, overlaps)] += times
    found = [Collective(*key, count, overlaps) for (*key, overlaps), count in counts.items()]
    return sorted(found, key=lambda each: -each.count * each.payload)


def _started(program: Program, where: str, instruction: Instruction) -> Iterator[tuple]:
    """(kind, payload, groups, between slices) of the collectives that one instruction starts, itself or in its fusion."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in KINDS:
        yield _collective(program, where, instruction, opcode)
    elif opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
        yield _between_slices(program, where, instruction)
    elif opcode in ("fusion", "async"):
        for name in instruction.called("calls"):
            inner = program.computations.get(name, [])
            starts = {
                operand for each in inner if '"AsyncCollectiveStart"' in each.attributes for operand in each.operands
            }
            sliced = {each.operands[0] for each in inner if each.opcode == "dynamic-slice"}
            sliced |= {each.operands[0] for each in inner if each.name in sliced and each.opcode == "get-tuple-element"}
            for each in inner:
                if "async_collective_fusion_config" in each.attributes and each.name not in starts:
                    continue  # goes on from, or waits for, the fusion that starts it
                for kind, *rest in _started(program, name, each):
                    yield "reduce-scatter" if kind == "all-reduce" and each.name in sliced else kind, *rest


def _overlaps(program: Program, start: Instruction, after: list[Instruction]) -> bool:
    """Whether something is computed between a collective's start and its end; False for one that is not asynchronous."""
    if start.opcode == "fusion" and not _holds(program, start, "AsyncCollectiveStart"):
        return False
    if start.opcode != "fusion" and not start.opcode.endswith(("-start", "send")):
        return False
    names, computes = {start.name}, False
    rendezvous = re.search(r'_xla_host_transfer_rendezvous="[^"]*"', start.attributes)
    for each in after:
        mine = not names.isdisjoint(each.operands) or (
            rendezvous is not None and each.opcode == "recv" and rendezvous[0] in each.attributes
        )
        if mine and (each.opcode.endswith("-done") and each.opcode != "send-done"):
            return computes
        if mine and each.opcode == "fusion" and _holds(program, each, "AsyncCollectiveDone"):
            return computes
        if mine:
            names.add(each.name)
        computes |= each.opcode in COMPUTES or "tpu_custom_call" in each.attributes
    return computes


def _holds(program: Program, fusion: Instruction, target: str) -> bool:
    """Whether a fusion calls such a function of the compiler's."""
    inner = [each for name in fusion.called("calls") for each in program.computations.get(name, [])]
    return any(f'"{target}"' in each.attributes for each in inner)


def _collective(program: Program, where: str, instruction: Instruction, kind: str) -> tuple:
    groups = device_groups(instruction.attributes, program.devices)
    operand = sum(type_bytes(program.types[where][name]) for name in instruction.operands)
    return kind, operand * len(groups[0]) if kind == "all-gather" else operand, groups, False


def _between_slices(program: Program, where: str, send: Instruction) -> tuple:
    """What a send to the host stands for: its runtime name, and slices as in `{1,2}x{0:7}`."""
    name = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)[1].lower().replace("_", "-")
    kind = name if name in KINDS else "collective-permute"
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', send.attributes)
    slices = []
    for part in target[1].split(",") if target else ["0:1"]:
        first, _, last = part.partition(":")
        slices += range(int(first), int(last or first) + 1)
    operand = type_bytes(program.types[where][send.operands[0]])
    return kind, operand * len(slices) if kind == "all-gather" else operand, (tuple(slices),), True


def device_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """`{{0,1},{2,3}}`, `[2,2]<=[2,2]T(1,0)` or `mesh['a'=2,'b'=2] {'a'}`; none: one group of all devices."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes)
    if listed:
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d, ]+)\}", listed[1]))
    tiled = re.search(r"replica_groups=(\[[^\]]*\]<=\S*\](?:T\([\d,]+\))?)", attributes)
    if tiled:
        return tuple(map(tuple, _ids(tiled[1]).tolist()))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", attributes)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = (_ids(named[2]) if named[2] else np.arange(devices)).reshape(list(sizes.values()))
        along = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", named[3])]
        last = range(ids.ndim - len(along), ids.ndim)
        size = math.prod(ids.shape[axis] for axis in along)
        return tuple(map(tuple, np.moveaxis(ids, along, last).reshape(-1, size).tolist()))
    return (tuple(range(devices)),)


def _ids(text: str) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)`: 0, 1, ... in the shape [4,2], its axes moved, in the shape [2,4]; `[2,4]T(1,0)`: so moved."""
    shape, dimensions, axes = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text).groups()
    sizes = [int(size) for size in (dimensions or shape).split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    ids = ids.transpose([int(axis) for axis in axes.split(",")]) if axes else ids
    return ids.reshape([int(size) for size in shape.split(",")]) if dimensions else ids
