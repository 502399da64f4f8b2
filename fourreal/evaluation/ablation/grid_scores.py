"""PSNR of every test grid: of what a run samples in a few steps, and of the copies that it should beat."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.masks import CutMix
from fourreal.diffusion.denoiser import make_denoiser
from fourreal.diffusion.noise import cell_noise
from fourreal.diffusion.stage import Stage
from fourreal.evaluation.ablation.arms import TWO_STREAMS
from fourreal.metrics.baselines import BASELINES
from fourreal.metrics.pixels import psnr_by_motion
from fourreal.models.build import Params
from fourreal.training.config import TrainConfig
from fourreal.training.prepare import Evaluator
from fourreal.training.validation import STEPS, frames_of

READOUTS = ("mean", "time", "view")
SCORES = "scores"  # the folder of test scores in a run's folder, a file for each number of steps


def make_scorer(config: TrainConfig, count: int) -> Callable[[Params, str], dict[str, list[float]]]:
    """`score(params, readout)`: the PSNR of every test grid, sampled in a few steps, over all, moving and static pixels."""
    batches = list(Batches(config.data, config.model.conditions, config.codec).evaluation("test", count))
    codec = config.codec.parameters()

    def sampler(readout: str) -> Callable[..., jax.Array]:
        denoiser = make_denoiser(config.model, dataclasses.replace(config.grid, readout=readout))
        stage = Stage(denoiser, config.codec, shift=config.sigma.shift)

        def sample(params: Params, batch: dict[str, Any]) -> jax.Array:
            frames = batch["frames"]
            times, *latent = config.codec.shape(*frames.shape[2:5])
            noise = jax.vmap(lambda seed: cell_noise(seed, frames.shape[1], times, tuple(latent)))(batch["index"])
            given, conditions = batch["given"], batch["conditions"]
            return stage(params, codec, frames, given, noise, conditions, steps=STEPS)[0]

        return jax.jit(sample)

    samplers = {readout: sampler(readout) for readout in _readouts(config)}

    def score(params: Params, readout: str) -> dict[str, list[float]]:
        scores = []
        for batch in batches:
            inputs = batch | {"index": batch["index"].astype(np.int32)}
            given = frames_of(config, batch["given"], batch["frames"].shape[2])
            scores += _grid_scores(np.asarray(samplers[readout](params, inputs)), batch, given)
        return _columns(scores)

    return score


def copy_scores(data: PipelineConfig, count: int) -> dict[str, dict[str, list[float]]]:
    """The test scores of the copies, which an arm should beat."""
    batches = list(Batches(dataclasses.replace(data, cuts=CutMix())).evaluation("test", count))
    return {
        name: _columns(
            [
                score
                for batch in batches
                for score in _grid_scores(
                    np.stack([make(*grid) for grid in zip(batch["frames"], batch["given"], strict=True)]),
                    batch,
                    batch["given"],
                )
            ]
        )
        for name, make in BASELINES.items()
    }


def _readouts(config: TrainConfig) -> tuple[str, ...]:
    return READOUTS if config.grid.fusion in TWO_STREAMS else READOUTS[:1]


def score_test_grids(config: TrainConfig, folder: Path, count: int) -> Evaluator:
    """An evaluator that writes the scores of `count` test grids into the run's folder; after the last step of each readout."""
    score = make_scorer(config, count)

    def evaluate(params: Params, done: int) -> tuple[dict[str, float], None]:
        readouts = _readouts(config) if done == config.steps else READOUTS[:1]
        scores = {"step": done} | {readout: score(params, readout) for readout in readouts}
        (folder / SCORES).mkdir(exist_ok=True)
        file = folder / SCORES / f"{done:07d}.json"
        file.with_suffix(".tmp").write_text(json.dumps(scores))
        file.with_suffix(".tmp").replace(file)
        return {}, None

    return evaluate


def _grid_scores(sampled: np.ndarray, batch: dict[str, Any], given: np.ndarray) -> list[dict[str, float]]:
    """The scores of a batch's grids, without those that only fill it."""
    return [
        psnr_by_motion(result, truth, mask)
        for result, truth, mask, weight in zip(sampled, batch["frames"], given, batch["weight"], strict=True)
        if weight > 0
    ]


def _columns(scores: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Scores by name, to a thousandth of a dB; None where there is no such pixel."""
    return {
        name: [round(score[name], 3) if math.isfinite(score[name]) else None for score in scores] for name in scores[0]
    }
