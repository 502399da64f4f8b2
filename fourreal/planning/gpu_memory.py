"""Memory and traffic of training and sampling on GPUs, by formula: XLA for GPUs, unlike that for TPUs, compiles only on one.

    temporaries   gradients + what layers keep for backward + one layer at work + two layers' gathered weights
    traffic       state read and written, weights read once each way, what is kept written and read, layers at work twice

All of it but the state's is of one microbatch; with several there is so many times the traffic, and the sum of gradients.

What layers keep is read from the step's jaxpr: results of the forward scan over layers. An estimate, as are the numbers of
one layer at work: six fp32 residuals, eight projections (four more for each cross-attention) and three hidden layers of the
MLP, in each stream.
"""

import math
from typing import Any

import jax
from jax.extend import core

from fourreal.parallel.mesh import microbatch, share_of_examples
from fourreal.planning.aot import cell_tokens
from fourreal.training.config import TrainConfig
from fourreal.training.step import fusion_of


def kept_for_backward(jaxpr: core.Jaxpr, depth: int) -> int:
    """Bytes that forward scans over `depth` layers stack up, of all devices."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == depth and not equation.params["reverse"]:
            body = equation.params["jaxpr"]
            once = getattr(body, "jaxpr", body).outvars  # what is carried has the shape that it has in the body
            stacked = [out for out, one in zip(equation.outvars, once, strict=True) if out.aval.shape != one.aval.shape]
            total += sum(math.prod(each.aval.shape) * each.aval.dtype.itemsize for each in stacked)
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(leaf):
                total += kept_for_backward(getattr(leaf, "jaxpr", leaf), depth)
    return total


def _is_jaxpr(leaf: Any) -> bool:
    return isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)


def estimate(
    config: TrainConfig, mesh: dict[str, int], state: Any, batch: Any, jaxpr: core.Jaxpr, tokens: int
) -> tuple[dict[str, int], int]:
    """(`memory` as of `compiled_bytes`, traffic), bytes of one device; `state` and `batch` are shapes with their places."""
    model, fusion, examples = config.model, fusion_of(config), len(batch["frames"])
    share = share_of_examples(examples, fusion.lead, mesh)
    parts = share // microbatch(share, config.optim.microbatch)
    cut = examples // share * (mesh["grid"] if fusion.lead == 2 else 1)
    kept = kept_for_backward(jaxpr, model.depth) // cut
    if cell_tokens(config, tokens) % mesh["tensor"] == 0:
        kept //= mesh["tensor"]
    own = tokens // cut // parts
    at_work = layer_at_work(config, own)
    layer = gathered_layer(config, [state["params"], state["frozen"]]) // mesh["tensor"]
    gradients = on_device(state["params"])
    arguments = on_device(state) + on_device(batch)
    temporaries = min(parts, 2) * gradients + kept + at_work + 2 * layer
    memory = {"arguments": arguments, "temporaries": temporaries, "total": arguments + temporaries}
    moved = on_device({name: state[name] for name in ("params", "ema", "opt")})
    part = 2 * gradients + 3 * model.depth * layer + 2 * kept + 6 * model.depth * at_work
    return memory, 2 * moved + parts * part


def estimate_sampling(
    config: TrainConfig, mesh: dict[str, int], arguments: Any, tokens: int, evaluations: int, branches: int
) -> tuple[dict[str, int], int]:
    """The same of sampling one grid of so many tokens; `arguments` are placed shapes, the parameters first.

    Nothing is kept for backward: a layer works while the weights of two are gathered.
    """
    model, lead = config.model, fusion_of(config).lead
    own = tokens * share_of_examples(branches, lead, mesh) // (mesh["grid"] if lead == 2 else 1)
    at_work, layer = layer_at_work(config, own), gathered_layer(config, arguments[0]) // mesh["tensor"]
    held, temporaries = on_device(arguments), at_work + 2 * layer
    memory = {"arguments": held, "temporaries": temporaries, "total": held + temporaries}
    return memory, evaluations * (on_device(arguments[0]) + 2 * model.depth * (layer + at_work))


def layer_at_work(config: TrainConfig, tokens: int) -> int:
    """Bytes of a layer's activations for so many tokens, in all streams."""
    model, fusion, item = config.model, fusion_of(config), item_size(config)
    streams = max(1, len(fusion.readouts) - 1)  # beside their mean
    projections = 8 + sum(4 * condition.cross + 8 * condition.pose for condition in model.conditions)
    widths = projections * model.width + 3 * model.mlp_width
    return streams * tokens * (6 * 4 * model.width + widths * item)


def gathered_layer(config: TrainConfig, params: Any) -> int:
    """Bytes of a layer's parameters, whole, in what its matmuls take."""
    depth, leaves = config.model.depth, jax.tree.leaves(params)
    stacked = sum(leaf.size for leaf in leaves if leaf.ndim and leaf.shape[0] == depth)
    return stacked // depth * item_size(config)


def item_size(config: TrainConfig) -> int:
    """Bytes of a number that a matmul takes."""
    return 2 if config.model.dtype == "bfloat16" else 4


def on_device(tree: Any) -> int:
    """Bytes of one device's share of placed shapes."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
