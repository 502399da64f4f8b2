"""What a compiled program does, read from its text: collectives and memory traffic, loops counted as often as they run.

The compiler's own cost analysis takes a loop's body once, and says nothing of collectives. Here every computation that the
entry reaches counts as often as its callers run it; a loop's trips are those that XLA notes, or the bound in its condition.

Bytes are of one device. A collective's `payload` is the larger of its operand and its result, and a device sends

    all-gather, reduce-scatter, all-to-all    payload (n - 1) / n           in groups of n
    all-reduce                              2 payload (n - 1) / n
    collective-permute                        payload

What a TPU's compiler writes in its own way: a reduce-scatter is a fusion of an all-reduce and a slice; an asynchronous
collective stands in several fusions and counts where it starts; one that a chip's sparse cores run is called, asynchronously;
between slices, chips send to and receive from their hosts.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # of types whose name does not say it
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "iota",
    "partition-id",
    "replica-id",
}
HOST = {"send", "recv", "send-done", "recv-done"}
CALLERS = {"while", "call", "call-done", "conditional"}  # their bodies' instructions move the bytes, not they

_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?[\w.\-]+ = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    def called(self, *keys: str) -> list[str]:
        """The computations that the attributes with such keys name."""
        found = []
        for match in _CALLED.finditer(self.attributes):
            if match[0].split("=")[0] in keys:
                found += re.findall(r"[\w.\-]+", match[1])
        return found


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


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations, lists of instructions, by name."""

    entry: str
    computations: dict[str, list[Instruction]]
    devices: int

    def runs(self) -> Iterator[tuple[str, int]]:
        """(computation, how often it runs) for all that the entry reaches, fusions excepted, callees with their callers'."""
        pending = [(self.entry, 1)]
        while pending:
            name, times = pending.pop()
            yield name, times
            for instruction in self.computations[name]:
                if instruction.opcode == "while":
                    trips = self.trips(name, instruction)
                    pending += [(body, times * trips) for body in instruction.called("body")]
                elif instruction.opcode in ("call", "call-start", "conditional"):
                    inner = instruction.called("to_apply", "calls", "branch_computations", "called_computations")
                    pending += [(called, times) for called in inner]

    def trips(self, where: str, loop: Instruction) -> int:
        """How often a while loop's body runs: as noted, or until its counter, in steps of 1, is at its bound; else once."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = {each.name: each for name in loop.called("condition") for each in self.computations[name]}
        compare = next((each for each in condition.values() if each.root and each.opcode == "compare"), None)
        if compare is None or "direction=LT" not in compare.attributes:
            return self._bound(loop)
        counter, bound = (condition[name] for name in compare.operands)
        place = re.search(r"index=(\d+)", counter.attributes)
        values = {each.name: each for each in self.computations[where]}
        start = values.get(loop.operands[0])
        start = values.get(start.operands[int(place[1])]) if place and start and start.opcode == "tuple" else None
        while start is not None and start.opcode in ("copy", "bitcast"):
            start = values.get(start.operands[0])
        first = int(start.arguments) if start is not None and start.opcode == "constant" else 0
        return max(int(bound.arguments) - first, 0) if bound.opcode == "constant" else self._bound(loop)

    def _bound(self, loop: Instruction) -> int:
        """The largest number that a condition compares with, where it is not a plain comparison."""
        bounds = [
            int(each.arguments)
            for name in self.reached(*loop.called("condition"))
            for each in self.computations[name]
            if each.opcode == "constant" and re.fullmatch(r"\d+", each.arguments)
        ]
        return max(bounds, default=1)

    def reached(self, *names: str) -> list[str]:
        """Computations and all that they call, by any means."""
        found, pending = [], list(names)
        while pending:
            name = pending.pop()
            if name in self.computations and name not in found:
                found.append(name)
                for instruction in self.computations[name]:
                    pending += instruction.called("calls", "to_apply", "body", "condition", "called_computations")
        return found

    @functools.cached_property
    def types(self) -> dict[str, dict[str, str]]:
        """The type of every value of every computation."""
        return {
            name: {instruction.name: instruction.type for instruction in instructions}
            for name, instructions in self.computations.items()
        }


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        start = _COMPUTATION.match(line.rstrip())
        if start:
            current = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and _INSTRUCTION.match(line):  # else a kernel's metadata, which goes over lines
            current.append(_instruction(line))
    if entry is None:
        raise ValueError("the text of the compiled program has no ENTRY computation: give compiled.as_text()")
    for name, instructions in computations.items():
        if not any(each.root for each in instructions):
            raise ValueError(
                f"the compiled program's computation {name} has no result: its text is not read to its end"
            )
    head = text[: text.find("\n")]
    partitions, replicas = (re.search(rf"{key}=(\d+)", head) for key in ("num_partitions", "replica_count"))
    return Program(entry, computations, int(partitions[1] if partitions else 1) * int(replicas[1] if replicas else 1))


def _instruction(line: str) -> Instruction:
    """`[ROOT] %name = type opcode(arguments), attributes`; types of tuples hold commas, comments and brackets of their own."""
    name, _, rest = re.sub(r"/\*.*?\*/", "", line).strip().partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        name.removeprefix("ROOT ").lstrip("%"),
        rest[:end],
        rest[end:opening].strip(),
        tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments,
        rest[closing + 1 :],
        name.startswith("ROOT "),
    )


def _closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"unclosed bracket in the compiled program: {text[:80]}")


def type_bytes(type_: str, on_chip: bool = True) -> int:
    """Bytes of an array or of all arrays of a tuple; without `on_chip`, only of those in a device's main memory."""
    return sum(_array_bytes(*array, on_chip=on_chip) for array in _ARRAY.findall(type_))


def _array_bytes(element: str, shape: str, layout: str, on_chip: bool) -> int:
    if not on_chip and re.search(r"S\([1-9]\d*\)", layout):
        return 0
    bits = BITS[element] if element in BITS else int(re.search(r"\d+", element)[0])
    return math.prod(int(size.lstrip("<= ")) for size in shape.split(",") if size) * bits // 8


def collectives(program: Program) -> list[Collective]:
    """Every collective of the program with how often it runs; equal ones together, the most bytes first."""
    counts = collections.Counter()
    for name, times in program.runs():
        for instruction in program.computations[name]:
            for found in _started(program, name, instruction):
                counts[found] += times
    found = [Collective(*key, count) for key, count in counts.items()]
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


def _collective(program: Program, where: str, instruction: Instruction, kind: str) -> tuple:
    groups = _groups(instruction.attributes, program.devices)
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


def _groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
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


def memory_traffic(program: Program) -> int:
    """Bytes that a step reads from and writes to a device's main memory: operands and results of all that is not fused.

    A fusion that takes only a slice of an operand reads the slice; one that updates a slice in place writes the slice. A
    kernel of another compiler counts as if it read its operands once. An estimate.
    """
    return sum(
        times * _traffic(program, name, instruction)
        for name, times in program.runs()
        for instruction in program.computations[name]
    )


def _traffic(program: Program, where: str, instruction: Instruction) -> float:
    opcode, types = instruction.opcode, program.types[where]
    if opcode in FREE | CALLERS | HOST or opcode.endswith("-start"):
        return 0
    if opcode.endswith("-done") or opcode in ("dynamic-slice", "slice", "gather"):
        return (1 if opcode.endswith("-done") else 2) * type_bytes(instruction.type, on_chip=False)
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * type_bytes(types[instruction.operands[1 if opcode == "dynamic-update-slice" else -1]], on_chip=False)
    fused = program.computations.get(next(iter(instruction.called("calls")), ""), []) if opcode == "fusion" else []
    kept = _kept(instruction)
    reads = sum(
        min(type_bytes(types[name], on_chip=False), _part_read(fused, place))
        for place, name in enumerate(instruction.operands)
        if place not in kept.values()
    )
    local = {each.name: each for each in fused}
    writes = 0
    for place, result in enumerate(_results(instruction, fused)):
        made = local.get(result)
        while made is not None and made.opcode in ("bitcast", "convert", "copy"):
            made = local.get(made.operands[0])
        if made is not None and made.opcode == "dynamic-update-slice":
            writes += type_bytes(local[made.operands[1]].type, on_chip=False)
        elif place not in kept:
            arrays = _ARRAY.findall(instruction.type)
            writes += _array_bytes(*arrays[place], on_chip=False) if place < len(arrays) else 0
    return reads + writes


def _kept(instruction: Instruction) -> dict[int, int]:
    """result -> operand, of those that are the same memory, by their places."""
    aliases = re.search(r"output_to_operand_aliasing=\{(.*?)\}, calls", instruction.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+)", aliases[1]) if aliases else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def _results(instruction: Instruction, fused: list[Instruction]) -> list[str]:
    """The values of a fusion that are its results; of another instruction, as many names as it has results."""
    root = next((each for each in fused if each.root), None)
    if root is None:
        return [""] * len(_ARRAY.findall(instruction.type))
    return list(root.operands) if root.opcode == "tuple" else [root.name] * len(_ARRAY.findall(root.type))


def _part_read(fused: list[Instruction], place: int) -> float:
    """Bytes of its operand at `place` that a fusion reads: what its slices take, where it only slices it."""
    names = {each.name for each in fused if each.opcode == "parameter" and each.arguments == str(place)}
    if not names:
        return math.inf
    part = 0
    for each in fused:
        if names.isdisjoint(each.operands):
            continue
        if each.opcode == "bitcast":
            names.add(each.name)
        elif each.opcode in ("dynamic-slice", "slice") and each.operands[0] in names:
            part += type_bytes(each.type)
        elif each.opcode != "dynamic-update-slice" or names & set(each.operands[1:]):
            return math.inf
    return part
