"""`GridPipeline`: one model as a function from given frames to the whole grid.

result = pipe(frames, given)                    # uint8 [v t h w 3], bool [v t] -> uint8 [v t h w 3]
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, UInt8

from fourreal.checkpoints.specs import ModelSpec, check_clip, check_shape
from fourreal.checkpoints.weights import read_placed
from fourreal.conditions.cameras import camera_names
from fourreal.conditions.condition import Condition, Conditions, axes_of
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.diffusion.guidance import Branch, guided_names, scale_branches
from fourreal.diffusion.noise import cell_noise
from fourreal.diffusion.samplers import Sampler
from fourreal.diffusion.stage import Stage
from fourreal.errors import UserError
from fourreal.grid import Known
from fourreal.models.build import Params, computed_types, model_table
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.nn.kernels import AttentionConfig, resolve_kernel
from fourreal.parallel import layout
from fourreal.parallel.mesh import count_slices, fit_mesh, make_mesh
from fourreal.parallel.overlap import compiler_options
from fourreal.sampling.pieces import PieceCoder
from fourreal.scene import Cameras, reduced_cameras


class GridPipeline:
    """Samples grids with one model. A call compiles once for each grid size and step count.

    The parameters are `params`, each in the type that its module computes in; they may be tensors of a file that is open. A
    grid is cut over the devices of `mesh`, by default all that there are; the branches of guidance go over its data axis.
    A codec that takes seconds encodes what is given before, and decodes the rest after, a piece a device at a time.
    Of several processes all make the same calls and get the same grids.
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Params,
        weights_hash: str = "",
        mesh: Mesh | None = None,
        attention: AttentionConfig = AttentionConfig(),
        coder: PieceCoder | None = None,
    ):
        self.config, self.weights_hash = spec, weights_hash
        if mesh is None:
            width = math.gcd(spec.model.width, spec.model.mlp_width)
            slices = count_slices(jax.devices())
            mesh = make_mesh(fit_mesh(len(jax.devices()), spec.views, spec.times, width, slices))
        self.mesh = mesh
        platform = self.mesh.devices.flat[0].platform
        kernel = resolve_kernel(attention, platform, spec.model.head_size, spec.model.dtype)
        self.denoiser = make_denoiser(spec.model, spec.grid, kernel)
        with jax.set_mesh(self.mesh):
            layout.check_widths(spec.model)
            table = model_table(spec.model, spec.grid)
            places = layout.shardings(params, table)
            self.params = jax.tree.map(read_placed, params, places, computed_types(params, table))
        self.coder = PieceCoder(spec.codec, self.mesh) if coder is None else coder
        whole = NamedSharding(self.mesh, P())  # every process can read the results
        static = ("sampler", "steps", "branches", "shift")
        with jax.set_mesh(self.mesh):
            options = compiler_options()
        self._sample = jax.jit(
            self._sample_unjitted, static_argnames=static, out_shardings=whole, compiler_options=options
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Denoising steps by default."""
        return (self.config.steps,)

    def __call__(
        self,
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
        *,
        text: Any = None,
        cameras: Cameras | None = None,
        conditions: Conditions | None = None,
        steps: int | None = None,
        untold: Collection[str] = (),
        guidance_scale: float = 1.0,
        guide: Collection[str] | None = None,
        method: str | Sampler = "euler",
        shift: float | None = None,
        seed: int | Sequence[int] = 0,
        stage: int = 0,
    ) -> UInt8[np.ndarray, "v t h w 3"]:
        """The grid with its unknown cells sampled; given cells come back bit for bit.

        Args:
            frames: pixels; only the given cells are read. Any numbers of views and times, any size that the patch divides.
            given: which cells are inputs; any subset, also none.
            text: features [l k] of a prompt, for models with text; with guidance by text `Prompt(features, negative)`.
            cameras: one a view, K [v 3 3] in pixels of `frames` and c2w [v 4 4], for models with cameras.
            conditions: further ones, or these, by name.
            untold: names of conditions that the model is not told; its own hints, say.
            steps: denoising steps; by default those that the checkpoint names.
            guidance_scale: weight of the given cells (and the text) against a sample without; 1 is no guidance.
            guide: what that sample goes without instead: "given", or names of conditions; the text alone is ("text",).
            method: euler; heun, which evaluates the model twice a step; unipc, of order 2; or a sampler.
            shift: of the noise levels; by default that of the checkpoint. Larger frames want more: Wan 2.1 takes 3 at 480 x 832
                pixels and 5 from 720 x 1280 on.
            seed: of the noise; each cell's is keyed by (seed, stage, v, t). Several give [seeds v t h w 3], each as if alone.
            stage: of a cascade, from 0; each has noise of its own.

        Raises UserError for frames that are no uint8 grid or whose sides the model's patch does not divide, for conditions
        that are none or that the model does not take, and for a sample that is not finite.
        """
        frames, given = np.asarray(frames), np.asarray(given)
        steps = self.config.steps if steps is None else steps
        self._check(frames, given)
        seeds = [seed] if np.ndim(seed) == 0 else list(seed)
        for each in seeds:
            if steps < 1 or not 0 <= each < 2**32:
                raise UserError(f"{steps} steps, seed {each}: expected at least 1 step and a seed from 0 to 2^32 - 1")
        if shift is not None and not 0 < shift < math.inf:
            raise UserError(f"shift {shift}: give a number above 0, 1 for no shift")
        if unknown := set(untold) - {condition.name for condition in self.conditions}:
            raise UserError(f"untold names {sorted(unknown)[0]}, which this checkpoint does not take: leave it out")
        told = dict(conditions or {})
        for name, value in (("text", text), *((name, cameras) for name in self.cameras_taken or ("cameras",))):
            if value is not None and told.setdefault(name, value) is not value:
                raise UserError(f"{name} is given twice, by itself and in conditions: give it once")
        told = self.told(told, frames, given)
        sampler = Sampler.named(method)() if isinstance(method, str) else method
        branches, weights = scale_branches(guidance_scale, guided_names(guide, self.conditions))
        branches = tuple(Branch(branch.drop | frozenset(untold)) for branch in branches)
        known = np.where(given[..., None, None, None], frames, 0)[None]
        latents = self.config.codec.known(given)[None]
        times, *frame = self.config.codec.shape(*frames.shape[1:4])
        if self.config.codec.in_pieces:
            known = self.coder.encode(known[0], latents[0])
        grids = []
        for each in seeds:
            noise = np.asarray(cell_noise(int(each), len(frames), times, tuple(frame), stage))[None]
            with jax.set_mesh(self.mesh):
                sampled, finite = self._sample(
                    self.params,
                    self.coder.parameters,
                    known,
                    latents,
                    noise,
                    told,
                    weights,
                    sampler=sampler,
                    steps=steps,
                    branches=branches,
                    shift=self.config.shift if shift is None else float(shift),
                )
            if not finite.all():
                raise UserError(
                    f"{steps} steps at guidance scale {guidance_scale:g} gave numbers that are not finite, expected pixels: "
                    "give a smaller scale (1 is no guidance), or take other weights"
                )
            if self.config.codec.in_pieces:
                sampled = self.coder.decode(sampled, frames, given)
            grids.append(np.where(given[..., None, None, None], frames, np.asarray(sampled[0])))
        return grids[0] if np.ndim(seed) == 0 else np.stack(grids)

    def _check(self, frames: np.ndarray, given: np.ndarray) -> None:
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise UserError(f"frames are {frames.dtype} {list(frames.shape)}: expected uint8 [views, times, h, w, 3]")
        if given.shape != frames.shape[:2] or given.dtype != bool:
            raise UserError(f"given is {given.dtype} {list(given.shape)}: expected bool {list(frames.shape[:2])}")
        check_shape(self.config, *frames.shape[:2], frames.shape[2:4])
        check_clip(self.config, *frames.shape[:2])

    def told(self, conditions: Conditions, frames: np.ndarray, given: np.ndarray) -> Conditions:
        """The conditions of one grid, checked, and what the host makes of the given frames, with a batch axis."""
        listed = {condition.name: condition for condition in self.config.model.conditions}
        said = {name: value for name, value in conditions.items() if value is not None}
        if unknown := [name for name in said if name not in listed]:
            raise UserError(
                f"this checkpoint takes no {unknown[0]}; train one with --model.conditions ... {unknown[0]}"
            )
        told = {}
        for name, condition in listed.items():
            value = condition.check(said[name], *given.shape) if name in said else condition.from_frames(frames, given)
            if isinstance(value, Cameras):  # of pixels, and the model's are those of latents
                value = reduced_cameras(value, self.config.codec.factors[1])
            if value is not None:
                told[name] = jax.tree.map(lambda array: array[None], value)
        return told

    def _sample_unjitted(
        self,
        params: Params,
        codec: Any,
        frames: Any,
        given: Any,
        noise: Any,
        conditions: Any,
        weights: Any,
        **static: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """(all frames, whether all numbers are finite); latents to latents where the codec has programs of its own."""
        stage = Stage(self.denoiser, self.config.codec, static.pop("sampler"), static.pop("shift"))
        if not self.config.codec.in_pieces:
            return stage(params, codec, frames, given, noise, conditions, weights=weights, **static)
        latents = stage.integrate(params, Known(frames, given), noise, conditions, weights=weights, **static)
        return latents, jnp.isfinite(latents).all()

    def with_first_video(
        self,
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
        conditions: Conditions | None = None,
        **options: Any,
    ) -> tuple[UInt8[np.ndarray, "v t h w 3"], Bool[np.ndarray, "v t"]]:
        """(frames, given) with all of view 0, which the base alone makes of what is given of it, the text and the rest.

        `options` are those of a call. Raises UserError where view 0 is given as a whole.
        """
        if given[0].all():
            raise UserError("view 0 is given as a whole, so no video is left to make for it: leave the option out")
        by_name = {condition.name: condition for condition in self.conditions}
        told = {
            name: jax.tree.map(lambda x, axes: x[:1] if axes > 1 else x, value, axes_of(by_name[name], value))
            for name, value in (conditions or {}).items()
        }
        video = self.base(frames[:1], given[:1], conditions=told, **options)
        return np.concatenate([video, frames[1:]]), np.concatenate([np.ones_like(given[:1]), given[1:]])

    @functools.cached_property
    def base(self) -> "GridPipeline":
        """The base of the same weights alone, which makes clips."""
        spec = dataclasses.replace(self.config, grid=GridDiTConfig("base"), views=1)
        return GridPipeline(spec, {"base": self.params["base"]}, self.weights_hash, self.mesh, coder=self.coder)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the model can be told."""
        return self.config.model.conditions

    @functools.cached_property
    def cameras_taken(self) -> tuple[str, ...]:
        """The conditions that are told the cameras."""
        return camera_names(self.conditions)
