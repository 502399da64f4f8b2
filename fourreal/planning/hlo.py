"""The text of a compiled program (HLO) as instructions, and how often each of its computations runs.

The compiler's own cost analysis takes a loop's body once. Here every computation that the entry reaches counts as often as
its callers run it; a loop's trips are those that XLA notes, or the bound in its condition. Bytes are of one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # of types whose name does not give their width

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
        """How often a while loop's body runs: as XLA notes, or until its counter, in steps of 1, is at its bound; else once."""
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


def type_bytes(type_: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(_array_bytes(element, shape) for element, shape, _ in _ARRAY.findall(type_))


def bytes_in_memory(type_: str) -> list[int]:
    """Bytes of each array of a type; 0 for one that is kept on the chip, outside the device's main memory."""
    return [
        0 if re.search(r"S\([1-9]\d*\)", layout) else _array_bytes(element, shape)
        for element, shape, layout in _ARRAY.findall(type_)
    ]


def _array_bytes(element: str, shape: str) -> int:
    bits = BITS[element] if element in BITS else int(re.search(r"\d+", element)[0])
    return math.prod(int(size.lstrip("<= ")) for size in shape.split(",") if size) * bits // 8
