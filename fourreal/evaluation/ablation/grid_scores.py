"""PSNR of every test grid: of what a run samples, of the copies that it should beat, and of what a source says can be known."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fourreal.codecs import to_latents
from fourreal.data.batches import Batch, Batches, PipelineConfig
from fourreal.data.masks import CutMix
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.diffusion.noise import cell_noise
from fourreal.diffusion.stage import Stage
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.evaluation.probe import probe
from fourreal.grid import even_cut
from fourreal.metrics.baselines import BASELINES
from fourreal.metrics.pixels import psnr, psnr_by_motion
from fourreal.models.build import Params
from fourreal.scene import Cut
from fourreal.training.config import TrainConfig
from fourreal.training.prepare import Evaluator
from fourreal.training.step import batch_loss, step_inputs
from fourreal.training.validation import frames_of

READOUTS = ("mean", "time", "view")
LOSS_SIGMAS = (0.7, 0.9, 1.0)  # where the structure of a sample is made
SCORES = "scores"  # the folder of test scores in a run's folder, a file for each number of steps

Columns = dict[
    str, list[float | None]
]  # all, moving, static, and subject where the source knows it: a PSNR for every grid


class Scorer:
    """Scores parameters of a run's model on the test grids, which are read once."""

    def __init__(self, config: TrainConfig, count: int):
        self.config = config
        self.batches = list(Batches(config.data, config.model.conditions, config.codec).evaluation("test", count))
        self.noise = [jax.vmap(self._noise)(jnp.asarray(batch["index"].astype(np.int32))) for batch in self.batches]
        self.given = [frames_of(config, batch["given"], batch["frames"].shape[2]) for batch in self.batches]
        self._samplers: dict[tuple[str, int], Callable[..., jax.Array]] = {}
        self._loss = jax.jit(self._losses)

    @property
    def readouts(self) -> tuple[str, ...]:
        """Those that the model has."""
        return tuple(name for name in READOUTS if name in self.config.grid.make_fusion().readouts)

    def sampled(self, params: Params, steps: int, readout: str = "mean") -> Columns:
        """The PSNR of every test grid, sampled in so many steps, over all, moving and static pixels, and the subject's."""
        scores = []
        for batch, noise, given in zip(self.batches, self.noise, self.given, strict=True):
            out = self._sampler(readout, steps)(params, step_inputs(batch), noise)
            scores += grid_scores(np.asarray(out), batch, given)
        return columns(scores)

    def losses(self, params: Params) -> dict[str, float]:
        """The loss of the velocity at high noise levels, mean over the test grids."""
        found = {}
        for sigma in LOSS_SIGMAS:
            parts = [
                (self._loss(params, step_inputs(batch), noise, np.float32(sigma)), batch["weight"])
                for batch, noise in zip(self.batches, self.noise, strict=True)
            ]
            total = sum(float((loss * weight).sum()) for loss, weight in parts)
            found[f"{sigma:g}"] = round(total / sum(float(weight.sum()) for _, weight in parts), 5)
        return found

    def probed(self, params: Params, count: int) -> dict[str, Any]:
        """The probe of the first `count` test grids, over the subject's pixels where the source knows them."""
        whole = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *map(_probed_part, self.batches))
        config, noise = self.config, np.concatenate(self.noise)[:count]
        found = probe(
            make_denoiser(config.model, config.grid),
            params,
            whole["frames"],
            np.concatenate(self.given)[:count],
            noise,
            whole["conditions"],
            codec=config.codec,
            sigmas=LOSS_SIGMAS,
            where=whole.get("subject"),
        )
        return found.to_json()

    def _noise(self, index: jax.Array) -> jax.Array:
        views, *frame = self.batches[0]["frames"].shape[1:5]
        times, *latent = self.config.codec.shape(*frame)
        return cell_noise(index, views, times, tuple(latent))

    def _sampler(self, readout: str, steps: int) -> Callable[..., jax.Array]:
        if (readout, steps) not in self._samplers:
            config = self.config
            denoiser = make_denoiser(config.model, dataclasses.replace(config.grid, readout=readout))
            stage = Stage(denoiser, config.codec, shift=config.sigma.shift)

            def sample(params: Params, batch: Batch, noise: jax.Array) -> jax.Array:
                codec, conditions = config.codec.parameters(), batch["conditions"]
                return stage(params, codec, batch["frames"], batch["given"], noise, conditions, steps=steps)[0]

            self._samplers[readout, steps] = jax.jit(sample)
        return self._samplers[readout, steps]

    def _losses(self, params: Params, batch: Batch, noise: jax.Array, sigma: jax.Array) -> jax.Array:
        x0 = to_latents(self.config.codec, self.config.codec.parameters(), batch["frames"])
        denoiser = make_denoiser(self.config.model, self.config.grid)
        return batch_loss(denoiser, params, x0, batch, jnp.full(len(x0), sigma), noise)


def score_params(scorer: Scorer, ablation: AblationConfig, params: Params, step: int, last: bool) -> dict[str, Any]:
    """A point of a run's curve; the last one has all readouts, all numbers of sampling steps, losses and the probe."""
    first, *others = ablation.sampling
    readouts = scorer.readouts if last else READOUTS[:1]
    point = {"step": step} | {readout: scorer.sampled(params, first, readout) for readout in readouts}
    if last:
        point |= {_steps(steps): scorer.sampled(params, steps) for steps in others}
        point["losses"] = scorer.losses(params)
        if ablation.probe_grids:
            point["probe"] = scorer.probed(params, ablation.probe_grids)
    return point


def score_test_grids(config: TrainConfig, folder: Path, ablation: AblationConfig) -> Evaluator:
    """An evaluator that writes the scores of the test grids into the run's folder."""
    scorer = Scorer(config, ablation.test_grids)

    def evaluate(params: Params, done: int) -> tuple[dict[str, float], None]:
        point = score_params(scorer, ablation, params, done, done == config.steps)
        (folder / SCORES).mkdir(exist_ok=True)
        file = folder / SCORES / f"{done:07d}.json"
        file.with_suffix(".tmp").write_text(json.dumps(point))
        file.with_suffix(".tmp").replace(file)
        return {}, None

    return evaluate


def reference_scores(data: PipelineConfig, count: int) -> dict[str, Columns]:
    """The test scores of the copies and, where a source knows its floors, of what the given frames tell by themselves."""
    batches = Batches(dataclasses.replace(data, cuts=CutMix()))
    scenes = batches.open("test")
    views, times = (even_cut(*sizes) for sizes in zip(scenes.shape(0)[:2], (data.views, data.times), strict=True))
    found: dict[str, list[dict[str, float]]] = {}
    for batch in batches.evaluation("test", count):
        made: dict[str, list[np.ndarray]] = {
            name: [make(*grid) for grid in zip(batch["frames"], batch["given"], strict=True)]
            for name, make in BASELINES.items()
        }
        for index in batch["index"] if hasattr(scenes, "floors") else []:
            for name, frames in scenes.floors(int(index), Cut(views, times)).items():
                made.setdefault(name, []).append(np.round(frames).astype(np.uint8))
        for name, frames in made.items():
            found.setdefault(name, []).extend(grid_scores(np.stack(frames), batch, batch["given"]))
    return {name: columns(scores) for name, scores in found.items()}


def grid_scores(sampled: np.ndarray, batch: Mapping[str, Any], given: np.ndarray) -> list[dict[str, float]]:
    """The scores of a batch's grids, without those that only fill it."""
    scores = []
    for i in np.flatnonzero(batch["weight"] > 0):
        truth = batch["frames"][i]
        score = psnr_by_motion(sampled[i], truth, given[i])
        if "subject" in batch:
            score["subject"] = psnr(sampled[i], truth, ~given[i][:, :, None, None] & batch["subject"][i])
        scores.append(score)
    return scores


def columns(scores: list[dict[str, float]]) -> Columns:
    """Scores by name, to a thousandth of a dB; None where there is no such pixel."""
    return {
        name: [round(score[name], 3) if math.isfinite(score[name]) else None for score in scores] for name in scores[0]
    }


def _probed_part(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("frames", "conditions", "subject") if name in batch}


def _steps(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"
