"""`load_pipeline`: a checkpoint as one function from given frames to the whole grid.

pipe = fourreal.load_pipeline("nano")
result = pipe(frames, given)                    # uint8 [v t h w 3], bool [v t] -> uint8 [v t h w 3]
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, UInt8

from fourreal.diffusion.guidance import Guidance
from fourreal.diffusion.samplers import cell_noise, noise_levels, sample_grid
from fourreal.grid import to_uint8, to_unit
from fourreal.models.build import Params, make_forward, split_model
from fourreal.models.cameras import Cameras, check_cameras
from fourreal.models.checkpoints import ModelSpec, describe_checkpoint, weights_folder
from fourreal.models.kernels import AttentionConfig, resolve_kernel
from fourreal.models.weights import fit_weights, open_weights, read_placed, weights_hash
from fourreal.parallel import layout
from fourreal.parallel.mesh import MeshConfig, count_slices, fit_mesh, make_mesh


class GridPipeline:
    """Samples grids with one model. The parameters are `params`; a call compiles once for each grid size and step count.

    A grid is cut over the devices of `mesh`, by default all that there are; the branches of guidance go over its data axis.
    Of several processes all make the same calls and get the same grids. `params` may be tensors of a file that is open.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Params,
        weights_hash: str = "",
        mesh: Mesh | None = None,
        attention: AttentionConfig = AttentionConfig(),
    ):
        self.config, self.weights_hash = spec, weights_hash
        if mesh is None:
            width = math.gcd(spec.model.width, spec.model.mlp_width)
            slices = count_slices(jax.devices())
            mesh = make_mesh(fit_mesh(len(jax.devices()), spec.views, spec.times, width, slices))
        self.mesh = mesh
        platform = self.mesh.devices.flat[0].platform
        kernel = resolve_kernel(attention, platform, spec.model.head_size, spec.model.dtype)
        graph, _ = split_model(spec.model, spec.grid, kernel)
        with jax.set_mesh(self.mesh):
            layout.check_widths(spec.model)
            self.params = jax.tree.map(read_placed, params, layout.shardings(params))
        self._forward = make_forward(graph)
        whole = NamedSharding(self.mesh, P())  # every process can read the results
        self._sample = jax.jit(
            self._sample_unjitted, static_argnames=("steps", "guidance", "method"), out_shardings=whole
        )

    def __call__(
        self,
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
        *,
        text: Float[np.ndarray, "l k"] | None = None,
        cameras: Cameras | None = None,
        steps: int = 8,
        guidance_scale: float = 1.0,
        method: str = "euler",
        seed: int = 0,
    ) -> UInt8[np.ndarray, "v t h w 3"]:
        """The grid with its unknown cells sampled; given cells come back bit for bit.

        Args:
            frames: pixels; only the given cells are read.
            given: which cells are inputs; any subset, also none.
            text: embedded prompt, for models with text.
            cameras: one a view, K [v 3 3] in pixels of `frames` and c2w [v 4 4], for models with cameras.
            steps: denoising steps.
            method: euler, or heun, which evaluates the model twice a step.
            guidance_scale: weight of the given cells (and the text) against a sample without; 1 is no guidance.
            seed: of the noise; each cell's is keyed by (seed, v, t).

        Raises ValueError for frames that are no uint8 grid or whose sides the model's patch does not divide, for cameras
        that are none or that the model does not take, and for a sample that is not finite.
        """
        frames, given = np.asarray(frames), np.asarray(given)
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}: expected uint8 [views, times, h, w, 3]")
        if given.shape != frames.shape[:2] or given.dtype != bool:
            raise ValueError(f"given is {given.dtype} {list(given.shape)}: expected bool {list(frames.shape[:2])}")
        if steps < 1 or not 0 <= seed < 2**32:
            raise ValueError(f"{steps} steps, seed {seed}: expected at least 1 step and a seed from 0 to 2^32 - 1")
        if cameras is not None:
            if not self.config.model.cameras:
                raise ValueError("this checkpoint takes no cameras; train one with --model.cameras")
            check_cameras(cameras, len(frames))
            cameras = jax.tree.map(lambda array: np.asarray(array, np.float32)[None], cameras)
        guidance = Guidance(given=guidance_scale, text=guidance_scale)
        known = np.where(given[..., None, None, None], frames, 0)
        noise = np.asarray(cell_noise(seed, *frames.shape[:2], frames.shape[2:]))
        conditions = {"text": text, "cameras": cameras}
        with jax.set_mesh(self.mesh):
            sampled, finite = self._sample(
                self.params, known, given, noise, conditions, steps=steps, guidance=guidance, method=method
            )
        if not finite:
            raise ValueError(
                f"{steps} steps at guidance scale {guidance_scale:g} gave numbers that are not finite, expected pixels: "
                "give a smaller scale (1 is no guidance), or take other weights"
            )
        return np.where(given[..., None, None, None], frames, np.asarray(sampled))

    def _sample_unjitted(
        self, params, frames, given, noise, conditions, *, steps: int, guidance: Guidance, method: str
    ) -> tuple[jax.Array, jax.Array]:
        """The pixels, and whether the numbers behind them are finite."""
        model = functools.partial(self._forward, params)
        text = None if conditions["text"] is None else conditions["text"][None]
        x = sample_grid(
            model,
            to_unit(frames)[None],
            given[None],
            noise[None],
            noise_levels(steps, self.config.shift),
            self.config.model.prediction,
            guidance,
            method,
            text=text,
            null_text=None if text is None else jnp.zeros_like(text),
            cameras=conditions["cameras"],
        )
        return to_uint8(x[0]), jnp.isfinite(x).all()


def load_pipeline(
    name: str | Path, mesh: MeshConfig | None = None, attention: AttentionConfig = AttentionConfig()
) -> GridPipeline:
    """The pipeline of a bundled checkpoint, a run's folder or a folder of weights, on all devices.

    By default a grid is cut over as many devices as divide its views and times. Of several processes each reads the weights
    that its devices hold, and the first one hashes the file. Raises FileNotFoundError for an unknown name
    (with the nearest known one), ValueError for broken weights and for a mesh that does not fit.
    """
    folder, spec = weights_folder(name), describe_checkpoint(name)
    if spec.grid is None:
        raise ValueError(f"{name} is a base on clips: train a grid model on it first (train.py ... --init-from {name})")
    _, shapes = split_model(spec.model, spec.grid)
    with open_weights(folder) as tensors:
        params = fit_weights(tensors, shapes, str(folder))
        digest = weights_hash(folder) if jax.process_index() == 0 else ""
        return GridPipeline(spec, params, digest, mesh and make_mesh(mesh), attention)
