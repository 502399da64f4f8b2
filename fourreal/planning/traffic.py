"""What a compiled program reads from and writes to a device's main memory. An estimate.

A fusion that takes only a slice of an operand reads the slice; one that updates a slice in place writes the slice. A kernel
of another compiler counts as if it read its operands once.
"""

import math
import re

from fourreal.planning.hlo import Instruction, Program, bytes_in_memory, type_bytes

NO_TRAFFIC = {
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
CALLERS = {"while", "call", "call-done", "conditional"}  # the instructions of their bodies move the bytes


def memory_traffic(program: Program) -> int:
    """Bytes that one run moves: operands and results of all that is not fused."""
    return sum(
        times * _traffic(program, name, instruction)
        for name, times in program.runs()
        for instruction in program.computations[name]
    )


def _traffic(program: Program, where: str, instruction: Instruction) -> float:
    opcode, types = instruction.opcode, program.types[where]
    if opcode in NO_TRAFFIC | CALLERS | HOST or opcode.endswith("-start"):
        return 0
    if opcode.endswith("-done") or opcode in ("dynamic-slice", "slice", "gather"):
        return (1 if opcode.endswith("-done") else 2) * _in_memory(instruction.type)
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _in_memory(types[instruction.operands[1 if opcode == "dynamic-update-slice" else -1]])
    fused = program.computations.get(next(iter(instruction.called("calls")), ""), []) if opcode == "fusion" else []
    kept = _kept(instruction)
    reads = sum(
        min(_in_memory(types[name]), _part_read(fused, place))
        for place, name in enumerate(instruction.operands)
        if place not in kept.values()
    )
    local = {each.name: each for each in fused}
    writes, written = 0, bytes_in_memory(instruction.type)
    for place, result in enumerate(_results(instruction, fused)):
        made = local.get(result)
        while made is not None and made.opcode in ("bitcast", "convert", "copy"):
            made = local.get(made.operands[0])
        if made is not None and made.opcode == "dynamic-update-slice":
            writes += _in_memory(local[made.operands[1]].type)
        elif place not in kept:
            writes += written[place] if place < len(written) else 0
    return reads + writes


def _in_memory(type_: str) -> int:
    return sum(bytes_in_memory(type_))


def _kept(instruction: Instruction) -> dict[int, int]:
    """result -> operand, of those that are the same memory, by their places."""
    aliases = re.search(r"output_to_operand_aliasing=\{(.*?)\}, calls", instruction.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+)", aliases[1]) if aliases else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def _results(instruction: Instruction, fused: list[Instruction]) -> list[str]:
    """The values of a fusion that are its results; of another instruction, as many names as it has results."""
    root = next((each for each in fused if each.root), None)
    if root is None:
        return [""] * len(bytes_in_memory(instruction.type))
    return list(root.operands) if root.opcode == "tuple" else [root.name] * len(bytes_in_memory(root.type))


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
