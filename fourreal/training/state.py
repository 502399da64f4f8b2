"""The state of a run as plain nested dicts of arrays, and which part of the parameters trains.

    state = {"step": int32, "params": trained, "frozen": the rest, "codec": the codec's, "ema": average of trained,
             "opt": optimizer's}

Gradients, optimizer and average exist for the trained part only. Plain dicts survive releases of Flax; `models/build.py` merges
them into the module in one line.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from fourreal.models.build import Params, model_table
from fourreal.parallel.layout import Table
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import make_optimizer

State = dict[str, Any]

# What trains -> the groups that modules claim for their parameters, see `parallel/layout.py`; None: all.
TRAINED = {
    "all": None,
    "attention": {"attention", "sync", "conditions"},
    "sync": {"sync"},
    "sync_and_conditions": {"sync", "conditions"},
}


def split_params(params: Params, table: Table, trains: str) -> tuple[Params, Params]:
    """(trained, frozen) parts of the parameters."""
    flat, groups = traverse_util.flatten_dict(params), TRAINED[trains]
    trained = {path for path in flat if groups is None or table[".".join(path)].group in groups}
    parts = ({path: flat[path] for path in flat if (path in trained) == keep} for keep in (True, False))
    return tuple(traverse_util.unflatten_dict(part) for part in parts)


def join_params(trained: Params, frozen: Params) -> Params:
    """The whole tree of `split_params`' parts."""
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def fresh_state(params: Params, config: TrainConfig) -> State:
    """The state before step 0."""
    table = model_table(config.model, config.grid)
    trained, frozen = split_params(params, table, config.trains)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": trained,
        "frozen": frozen,
        "codec": config.codec.parameters(),
        "ema": jax.tree.map(jnp.copy, trained),
        "opt": make_optimizer(config.optim, config.steps, table).init(trained),
    }


def checkpoint_bytes(state: State) -> int:
    """Bytes of a checkpoint's arrays: without the frozen part, which is written once, and the codec, which is the config's."""
    return sum(
        x.size * x.dtype.itemsize for name in ("step", "params", "ema", "opt") for x in jax.tree.leaves(state[name])
    )
