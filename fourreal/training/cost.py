"""What a function costs before it runs: FLOPs of matmuls and convolutions from its jaxpr, memory from the compiled program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

CUDNN_MATMULS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}  # the logits once more


def matmul_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of all matmuls and convolutions of a call on all devices together, 2 per multiply-add.

    A scan's body counts as often as it runs, a `shard_map`'s on every device, a Pallas kernel's at every point of its grid;
    cuDNN's attention counts by formula; for `cond`, the most expensive branch counts. The compiler's own count takes the
    body of a loop once and sees no kernels.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    """`matmul_flops` of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            contracted = parameters["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out.shape) * (kernel.size // outputs)  # the kernel has the inputs of one group
        elif name in CUDNN_MATMULS:  # q [b q h e], k [b k h e]
            q, k = (variable.aval.shape for variable in equation.invars[:2])
            total += CUDNN_MATMULS[name] * 2 * math.prod(q) * k[1]
            continue
        repeats = 1
        if name == "scan":
            repeats = parameters["length"]
        elif name == "shard_map":
            repeats = math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
        elif name == "pallas_call":
            repeats = math.prod(parameters["grid_mapping"].grid)
        inner = [
            jaxpr_flops(getattr(leaf, "jaxpr", leaf))
            for leaf in jax.tree.leaves(list(parameters.values()), is_leaf=_is_jaxpr)
            if _is_jaxpr(leaf)
        ]
        total += repeats * (max(inner) if name == "cond" else sum(inner))
    return total


def _is_jaxpr(leaf: Any) -> bool:
    return isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)


def compiled_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes a device needs: `arguments`, `temporaries`, and `total` with the outputs that reuse no argument."""
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {"arguments": arguments, "temporaries": temporaries, "total": arguments + temporaries + new_outputs}
