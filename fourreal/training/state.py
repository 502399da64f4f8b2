"""The state of a run as plain nested dicts of arrays, and which part of the parameters trains.

    state = {"step": int32, "params": trained, "frozen": the rest, "ema": average of trained, "opt": optimizer's}

Gradients, optimizer and average exist for the trained part only. Plain dicts survive releases of Flax; `step.py` merges them
into the module in one line.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from fourreal.config import TrainConfig
from fourreal.models.build import Params
from fourreal.training.optimizer import make_optimizer

State = dict[str, Any]

# Prefixes of parameter paths: the sync layers, and with them what conditions the base.
SYNC = (
    ("sync",),
    ("sigma_projection",),
    ("base", "given"),
    ("base", "hint_embed"),
    ("base", "camera_embed"),
    ("base", "head", "copy_gate"),
    ("base", "context"),
)
ATTENTION = (("base", "blocks", "attention"),)
TRAINED = {"all": ((),), "attention": SYNC + ATTENTION, "sync": SYNC}


def split_params(params: Params, trains: str) -> tuple[Params, Params]:
    """(trained, frozen) parts of the parameters."""
    flat = traverse_util.flatten_dict(params)
    trained = {path for path in flat if any(path[: len(prefix)] == prefix for prefix in TRAINED[trains])}
    parts = ({path: flat[path] for path in flat if (path in trained) == keep} for keep in (True, False))
    return tuple(traverse_util.unflatten_dict(part) for part in parts)


def join_params(trained: Params, frozen: Params) -> Params:
    """The whole tree of `split_params`' parts."""
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def fresh_state(params: Params, config: TrainConfig) -> State:
    """The state before step 0."""
    trained, frozen = split_params(params, config.trains)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": trained,
        "frozen": frozen,
        "ema": jax.tree.map(jnp.copy, trained),
        "opt": make_optimizer(config.optim, config.steps).init(trained),
    }
