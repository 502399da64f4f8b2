"""`load_pipeline`: a checkpoint as one function from given frames to the whole grid.

pipe = fourreal.load_pipeline("nano")
result = pipe(frames, given)                    # uint8 [v t h w 3], bool [v t] -> uint8 [v t h w 3]
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import jax

from fourreal.checkpoints.specs import describe_checkpoint, stage_folders
from fourreal.checkpoints.weights import fit_weights, open_weights, weights_hash
from fourreal.errors import UserError
from fourreal.models.build import split_model
from fourreal.nn.kernels import AttentionConfig
from fourreal.options import import_extensions
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.sampling.cascade import Cascade, Pipeline
from fourreal.sampling.pipeline import GridPipeline


def load_pipeline(
    name: str | Path,
    mesh: MeshConfig | None = None,
    attention: AttentionConfig = AttentionConfig(),
    extensions: Sequence[str | ModuleType] = (),
    vae: str | Path | None = None,
) -> Pipeline:
    """The pipeline of a bundled checkpoint, a run's folder or a folder of weights, on all devices.

    A base alone samples clips: grids of one view or one time. `vae` is the folder of the codec's autoencoder, for a checkpoint
    that names none, or one that is not here.

    A folder of weights that holds another one, `low`, is a cascade: that one samples first. By default a grid is cut over as
    many devices as divide its views and times. Of several processes each reads the weights that its devices hold, and the first
    one hashes the file. A checkpoint with conditions, fusions or codecs of other modules needs these to be imported, as naming
    them in `extensions` does. Raises MissingFile for an unknown name (with the nearest known one), UserError for broken
    weights, for a mesh that does not fit, and for stages that do not.
    """
    import_extensions(extensions)
    stages = tuple(_stage(folder, mesh, attention, vae) for folder in stage_folders(name))
    return stages[0] if len(stages) == 1 else Cascade(stages)


def _stage(folder: Path, mesh: MeshConfig | None, attention: AttentionConfig, vae: str | Path | None) -> GridPipeline:
    spec = describe_checkpoint(folder)
    if vae is not None:
        if not hasattr(spec.codec, "weights"):
            raise UserError(
                f"--vae {vae}: the checkpoint {folder} works on {spec.codec.kind}, without an autoencoder; leave it out"
            )
        spec = dataclasses.replace(spec, codec=dataclasses.replace(spec.codec, weights=str(vae)))
    if not spec.codec.present:
        spec.codec.parameters()  # says so before weights are read
    _, shapes = split_model(spec.model, spec.grid)
    with open_weights(folder) as tensors:
        params = fit_weights(tensors, shapes, str(folder))
        digest = weights_hash(folder) if jax.process_index() == 0 else ""
        return GridPipeline(spec, params, digest, mesh and make_mesh(mesh), attention)
