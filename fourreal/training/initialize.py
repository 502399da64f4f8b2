"""Where a fresh run's parameters come from: initialisation, or the weights that `--init-from` names."""

import dataclasses
from pathlib import Path

from flax import traverse_util

from fourreal.models.build import Params, fresh_params, split_model
from fourreal.models.checkpoints import ModelSpec, describe_checkpoint, weights_folder
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.weights import flat_names, open_weights, read_placed
from fourreal.parallel import layout

SYNC = ("sync.", "sigma_projection.")
OWN = (
    *SYNC,
    "base.hint_embed.",
    "base.camera_embed.",
    "base.head.copy_gate.",
)  # what not every model has
FREE = (
    "hints",
    "cameras",
    "depth",
    "dtype",
    "remat",
    "unroll",
)  # settings of a base that may differ, or whose difference the shapes show


def initial_params(spec: ModelSpec, seed: int, init_from: str | Path | None = None) -> tuple[Params, str]:
    """The parameters before step 0, and one line that says where they are from.

    Weights of a base alone, or of another fusion, start a grid model: the sync layers stay fresh, and so do maps of hints and
    cameras that the weights lack. Raises ValueError for any other difference between the two models.
    """
    _, shapes = split_model(spec.model, spec.grid)
    places = layout.shardings(shapes)
    if init_from is None:
        return fresh_params(spec.model, spec.grid, seed, places), f"fresh parameters from seed {seed}"
    described = describe_checkpoint(init_from)
    theirs = dataclasses.asdict(described.model)
    for name, ours in dataclasses.asdict(spec.model).items():
        if name not in FREE and theirs[name] != ours:
            raise ValueError(f"--init-from {init_from}: its {name} is {theirs[name]}, this config has {ours}")
    wanted, places = flat_names(shapes), flat_names(places)
    with open_weights(weights_folder(init_from)) as found:
        skipped = () if _same_sync(spec.grid, described.grid) else SYNC
        found = {name: tensor for name, tensor in found.items() if not name.startswith(skipped)}
        for name in {**wanted, **found}:
            if name in wanted and name in found and found[name].shape != wanted[name].shape:
                raise ValueError(
                    f"--init-from {init_from}: tensor {name} is {found[name].shape}, this config needs {wanted[name].shape}"
                )
            if (name in wanted) != (name in found) and not name.startswith(OWN):
                lacking = "lacks" if name in wanted else "has beyond this config"
                raise ValueError(f"--init-from {init_from} {lacking} the tensor {name}: take weights of the same base")
        params = {name: read_placed(found[name], places[name]) for name in wanted if name in found}
    missing = [name for name in wanted if name not in params]
    if missing:
        fresh = flat_names(fresh_params(spec.model, spec.grid, seed, layout.shardings(shapes)))
        params |= {name: fresh[name] for name in missing}
    line = f"{len(wanted) - len(missing)} of {len(wanted)} tensors from {init_from}"
    for word, names in (("fresh", missing), ("not taken", [name for name in found if name not in wanted])):
        if own := [own.rstrip(".") for own in OWN if any(name.startswith(own) for name in names)]:
            line += f"; {word}: {', '.join(own)}"
    return traverse_util.unflatten_dict(params, sep="."), line


def _same_sync(ours: GridDiTConfig | None, theirs: GridDiTConfig | None) -> bool:
    """Whether the sync layers of two models do the same; those of two fusions may have equal shapes."""
    return ours is None or theirs is None or (ours.fusion, ours.matched) == (theirs.fusion, theirs.matched)
