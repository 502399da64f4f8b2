"""Where a fresh run's parameters come from: initialisation, or the weights that `--init-from` names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint, weights_folder
from fourreal.checkpoints.weights import flat_names, open_weights, read_placed
from fourreal.errors import UserError
from fourreal.models.build import Params, fresh_params, model_table, split_model
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.parallel import layout

OWN = {"lora", "sync", "conditions"}  # groups of parameters that not every model has, or not the same
FREE = (
    "conditions",
    "depth",
    "dtype",
    "lora_rank",
    "lora_alpha",
    "lora_maps",
    "remat",
    "unroll",
)  # of a base: may differ, or the shapes show it


def initial_params(
    spec: ModelSpec, seed: int, init_from: str | Path | None = None, dtypes: Mapping[str, Any] = {}
) -> tuple[Params, str]:
    """The parameters before step 0, and one line that says where they are from.

    `dtypes` says what they are held in where that is not float32. Beside them one tensor at most is in memory.

    Weights of a base alone, or of another fusion, start a grid model: the sync layers stay fresh, and so do maps of hints and
    cameras that the weights lack. Raises ValueError for any other difference between the two models.
    """
    _, shapes = split_model(spec.model, spec.grid)
    table = model_table(spec.model, spec.grid)
    places = layout.shardings(shapes, table)
    if init_from is None:
        return fresh_params(spec.model, spec.grid, seed, places), f"fresh parameters from seed {seed}"
    described = describe_checkpoint(init_from)
    theirs = dataclasses.asdict(described.model)
    for name, ours in dataclasses.asdict(spec.model).items():
        if name not in FREE and theirs[name] != ours:
            raise UserError(f"--init-from {init_from}: its {name} is {theirs[name]}, this config has {ours}")
    wanted, places = flat_names(shapes), flat_names(places)
    theirs_table = model_table(described.model, described.grid)
    with open_weights(weights_folder(init_from)) as found:
        if not _same_sync(spec.grid, described.grid):
            own = {name for name in wanted if _group(table, name) == "sync"}
            found = {name: tensor for name, tensor in found.items() if name not in own}
        for name in {**wanted, **found}:
            if name in wanted and name in found and found[name].shape != wanted[name].shape:
                raise UserError(
                    f"--init-from {init_from}: tensor {name} is {found[name].shape}, this config needs {wanted[name].shape}"
                )
            group = _group(table if name in wanted else theirs_table, name)
            if (name in wanted) != (name in found) and group not in OWN:
                lacking = "lacks" if name in wanted else "has beyond this config"
                raise UserError(f"--init-from {init_from} {lacking} the tensor {name}: take weights of the same base")
        params = {
            name: read_placed(found[name], places[name], dtypes.get(name, jnp.float32))
            for name in wanted
            if name in found
        }
    missing = [name for name in wanted if name not in params]
    if missing:
        missing_places = traverse_util.unflatten_dict({name: places[name] for name in missing}, sep=".")
        fresh = flat_names(fresh_params(spec.model, spec.grid, seed, missing_places, missing))
        params |= {name: value.astype(dtypes.get(name, jnp.float32)) for name, value in fresh.items()}
    line = f"{len(wanted) - len(missing)} of {len(wanted)} tensors from {init_from}"
    for word, names in (("fresh", missing), ("not taken", [name for name in found if name not in wanted])):
        if names:
            line += f"; {word}: {', '.join(dict.fromkeys(_part(name) for name in names))}"
    return traverse_util.unflatten_dict(params, sep="."), line


def _group(table: layout.Table, name: str) -> str:
    return table[name].group if name in table else ""


def _part(name: str) -> str:
    """The module of a parameter, as a line names it."""
    return name.split(".")[0] if not name.startswith("base.") else ".".join(name.split(".")[:-1]).removesuffix(".embed")


def _same_sync(ours: GridDiTConfig, theirs: GridDiTConfig) -> bool:
    """Whether the sync layers of two models do the same; those of two fusions may have equal shapes."""
    return (ours.fusion, ours.matched) == (theirs.fusion, theirs.matched)
