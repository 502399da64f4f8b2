"""The state of a run as plain nested dicts of arrays, and which part of the parameters trains.

    state = {"step": int32, "params": trained, "frozen": the rest, "codec": the codec's, "ema": average of trained,
             "opt": optimizer's}

Gradients, optimizer and average exist for the trained part only; frozen matrices are held in the type of their matmuls. Plain
dicts survive releases of Flax; `models/build.py` merges them into the module in one line.
"""

from collections.abc import Mapping
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
    "lora": {"lora", "sync", "conditions"},
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


def frozen_dtypes(shapes: Params, config: TrainConfig) -> dict[str, Any]:
    """What the frozen parameters among such are held in, by dotted name: what their modules compute with."""
    table = model_table(config.model, config.grid)
    _, frozen = split_params(shapes, table, config.trains)
    return {name: table[name].dtype for name in traverse_util.flatten_dict(frozen, sep=".")}


def fresh_state(params: Params, config: TrainConfig, codec: Mapping[str, Any] = {}) -> State:
    """The state before step 0; `codec` are the parameters of the config's codec, if steps encode."""
    dtypes, table = frozen_dtypes(params, config), model_table(config.model, config.grid)
    trained, frozen = split_params(params, table, config.trains)
    flat = traverse_util.flatten_dict(frozen, sep=".")
    frozen = traverse_util.unflatten_dict({name: x.astype(dtypes[name]) for name, x in flat.items()}, sep=".")
    return fresh_training(trained, config) | {"frozen": frozen, "codec": codec}


def fresh_training(trained: Params, config: TrainConfig) -> State:
    """The part of the state before step 0 that training changes."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": trained,
        "ema": jax.tree.map(jnp.copy, trained),
        "opt": make_optimizer(config.optim, config.steps, model_table(config.model, config.grid)).init(trained),
    }


def changing(state: State) -> State:
    """What training changes: without the frozen part, which is written once, and the codec's, which is the config's."""
    return {name: part for name, part in state.items() if name not in ("frozen", "codec")}


def checkpoint_bytes(state: State) -> int:
    """Bytes of a checkpoint's arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(changing(state)))
