"""Where a fresh run's parameters come from: initialisation, or the weights that `--init-from` names."""

from pathlib import Path

from flax import traverse_util

from fourreal.config import ModelSpec
from fourreal.models.build import Params, fresh_params
from fourreal.models.weights import flat_names, read_weights
from fourreal.sampling.checkpoints import weights_folder

FRESH = (
    "sync.",
    "sigma_projection.",
    "base.hint_embed.",
    "base.head.hint_gate.",
)  # may be missing in the weights of a base


def initial_params(spec: ModelSpec, seed: int, init_from: str | Path | None = None) -> tuple[Params, str]:
    """The parameters before step 0, and one line that says where they are from.

    Weights of a base alone start a grid model: the sync layers (and hints that the base lacks) stay fresh. Raises ValueError
    for any other difference between the two models.
    """
    params = fresh_params(spec.model, spec.grid, seed)
    if init_from is None:
        return params, f"fresh parameters from seed {seed}"
    folder = weights_folder(init_from)
    found, wanted = read_weights(folder), flat_names(params)
    taken = {}
    for name, value in wanted.items():
        if name in found and found[name].shape == value.shape:
            taken[name] = found[name]
        elif name in found:
            raise ValueError(
                f"--init-from {init_from}: tensor {name} is {found[name].shape}, this config needs {value.shape}"
            )
        elif not name.startswith(FRESH):
            raise ValueError(f"--init-from {init_from} lacks the tensor {name}: take weights of the same base")
    fresh = sorted({name.split(".")[0 if name.startswith("s") else 1] for name in wanted if name not in taken})
    line = f"{len(taken)} of {len(wanted)} tensors from {init_from}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")
    return traverse_util.unflatten_dict({**wanted, **taken}, sep="."), line
