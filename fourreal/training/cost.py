"""What a function costs before it runs: matmul FLOPs from its jaxpr, memory from the compiled program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of all matmuls of a call, 2 per multiply-add; a scan's body counts as often as it runs.

    The compiler's own count takes the body of a loop once, so it cannot be used for scanned layers.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                total += repeats * _count(getattr(inner, "jaxpr", inner))
    return total


def compiled_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes a device needs: `arguments`, `temporaries`, and `total` with the outputs that reuse no argument."""
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"arguments": arguments, "temporaries": temporaries, "total": arguments + temporaries + new_outputs}
