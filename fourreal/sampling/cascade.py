"""`Cascade`: stages of which the first samples a small grid and each further one makes it larger, called like one pipeline.

    low = stage_1(reduced frames, given),    grid = stage_2(frames, given, low_res=low), ...

Every stage has its own weights, and noise of its own. A stage is told the frames that are given at its own size.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from fourreal.checkpoints.specs import ModelSpec
from fourreal.conditions import LowRes
from fourreal.conditions.cameras import camera_names
from fourreal.conditions.condition import Condition, Conditions
from fourreal.diffusion.guidance import guided_names
from fourreal.diffusion.noise import cell_noise
from fourreal.errors import UserError
from fourreal.sampling.pipeline import GridPipeline
from fourreal.scene import Cameras, reduced_cameras, reduced_frames

BLUR = 2**16  # numbers from here on key the noise that blurs what a stage is told


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Pipelines from the smallest frames to the largest; all but the first take `low_res`."""

    stages: tuple[GridPipeline, ...]

    def __post_init__(self):
        for stage in self.stages[1:]:
            if not any(isinstance(condition, LowRes) for condition in stage.config.model.conditions):
                raise UserError("a stage after the first enlarges: train it with --model.conditions ... low_res")
        for low, high in zip(self.stages, self.stages[1:], strict=False):
            if tuple(side * enlarging(high).factor for side in low.config.size) != tuple(high.config.size):
                raise UserError(
                    f"a stage makes frames of {low.config.size}, the next one takes a {enlarging(high).factor}th of "
                    f"{high.config.size}: give stages that fit"
                )

    @property
    def config(self) -> ModelSpec:
        """That of the last stage: what comes out."""
        return self.stages[-1].config

    @property
    def weights_hash(self) -> str:
        """Of all stages."""
        return "+".join(stage.weights_hash for stage in self.stages)

    @property
    def steps(self) -> tuple[int, ...]:
        """Denoising steps by default, of every stage."""
        return tuple(stage.config.steps for stage in self.stages)

    @property
    def mesh(self):
        """The devices."""
        return self.stages[-1].mesh

    @property
    def cameras_taken(self) -> tuple[str, ...]:
        """The conditions that are told the cameras, of any stage."""
        return camera_names(self.conditions)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What a caller can say."""
        found = {c.name: c for stage in self.stages for c in stage.conditions if not isinstance(c, LowRes)}
        return tuple(found.values())

    def boxes(self, number: int) -> int:
        """How many pixels a side of the last stage's frames are one of a stage's."""
        return math.prod(enlarging(later).factor for later in self.stages[number + 1 :])

    def __call__(
        self,
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
        *,
        text: Any = None,
        cameras: Cameras | None = None,
        conditions: Conditions | None = None,
        guidance_scale: float = 1.0,
        guide: Collection[str] | None = None,
        untold: Collection[str] = (),
        seed: int | Sequence[int] = 0,
        **options,
    ) -> UInt8[np.ndarray, "v t h w 3"]:
        """As `GridPipeline.__call__`, with frames of the last stage's size; the steps and the rest are those of every stage.

        What one stage does not take is said to the others alone, and guides these alone.
        """
        named = {"text": text} | dict.fromkeys(self.cameras_taken or ("cameras",), cameras)
        said = dict(conditions or {}) | {name: value for name, value in named.items() if value is not None}
        if np.ndim(seed):
            options |= {"guidance_scale": guidance_scale, "guide": guide, "untold": untold}
            return np.stack([self(frames, given, conditions=said, seed=one, **options) for one in seed])
        drop = guided_names(guide, [condition for stage in self.stages for condition in stage.conditions])
        taken = {condition.name for condition in self.conditions}
        if unknown := [name for name, value in said.items() if value is not None and name not in taken]:
            raise UserError(
                f"no stage of this checkpoint takes {unknown[0]}; they take {', '.join(taken) or 'nothing'}"
            )
        frames, grid = np.asarray(frames), None
        for number, stage in enumerate(self.stages):
            boxes = self.boxes(number)
            own = {condition.name for condition in stage.conditions}
            told = {name: value for name, value in said.items() if name in own}
            for name in camera_names(stage.conditions):
                if told.get(name) is not None:
                    told[name] = reduced_cameras(told[name], boxes)
            if grid is not None:
                low = enlarging(stage)
                noise = np.asarray(cell_noise(int(seed), *given.shape, grid.shape[2:], stage=BLUR + number))
                told["low_res"] = low.blurred(grid / np.float32(127.5) - 1, noise, low.sampled)
            options["untold"], options["guide"] = own & set(untold), drop & {"given", *own}
            options["guidance_scale"] = guidance_scale if options["guide"] else 1.0
            grid = stage(reduced_frames(frames, boxes), given, conditions=told, seed=seed, stage=number, **options)
        return grid


Pipeline = GridPipeline | Cascade


def enlarging(stage: GridPipeline) -> LowRes:
    """What a stage is told of the one before it."""
    return next(condition for condition in stage.config.model.conditions if isinstance(condition, LowRes))
