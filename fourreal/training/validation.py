"""What a run reports of its average on the validation split: loss by noise level, PSNR of sampled grids, a contact sheet.

Grids are cut and masked without chance (view 0 and time 0 given, cameras known), noise is fixed, so the numbers of two steps
compare.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.config import TrainConfig
from fourreal.data.pipeline import evaluation_batches
from fourreal.diffusion.samplers import cell_noise, noise_levels, sample_grid
from fourreal.evaluation.baselines import copy_freeze_time
from fourreal.evaluation.metrics import psnr_by_motion
from fourreal.grid import to_uint8, to_unit
from fourreal.models.build import Params
from fourreal.sampling.contact import Panel, contact_sheet
from fourreal.training.step import batch_cameras, batch_loss

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # midpoints of five equal buckets
STEPS = 4  # sampling steps
SEED = 0
SHEET_GRIDS = 2


def make_validation(forward: Callable, config: TrainConfig) -> Callable[[Params], tuple[dict[str, float], np.ndarray]]:
    """`validate(params) -> (numbers, contact sheet)`; the batches are read once and kept."""
    batches = list(evaluation_batches(config.data, "validation", config.eval_grids))
    prediction = config.model.prediction
    levels = noise_levels(STEPS, config.sigma.shift)

    def losses(params: Params, frames: jax.Array, given: jax.Array, noise: jax.Array, **conditions: Any) -> jax.Array:
        def at(sigma: jax.Array) -> jax.Array:
            level = jnp.full((frames.shape[0],), sigma)
            return batch_loss(forward, params, frames, given, level, noise, prediction, **conditions)

        return jax.lax.map(at, jnp.array(SIGMAS))

    def sample(params: Params, frames: jax.Array, given: jax.Array, noise: jax.Array, **conditions: Any) -> jax.Array:
        def model(x: jax.Array, sigma: jax.Array, mask: jax.Array) -> jax.Array:
            return forward(params, x, sigma, mask, **conditions)

        return to_uint8(sample_grid(model, to_unit(frames), given, noise, levels, prediction))

    mesh = jax.sharding.get_mesh()
    whole = None if mesh.empty else NamedSharding(mesh, P())  # every process can read the results
    losses, sample = (jax.jit(f, static_argnames="context", out_shardings=whole) for f in (losses, sample))

    def validate(params: Params) -> tuple[dict[str, float], np.ndarray]:
        loss, scores, sheets = [], [], []
        for batch in batches:
            frames, given = batch["frames"], batch["given"]
            context = {"context": batch["context"]} if "context" in batch else {}
            conditions = context | batch_cameras(config, batch)
            noise = np.broadcast_to(_noise(frames.shape[1:]), frames.shape)
            real = batch["weight"] > 0
            loss.append(np.asarray(losses(params, frames, given, noise, **conditions))[:, real])
            sampled = np.where(given[..., None, None, None], frames, sample(params, frames, given, noise, **conditions))
            for truth, mask, result in zip(
                *(_as_grids(x, context)[real] for x in (frames, given, sampled)), strict=True
            ):
                scores.append(psnr_by_motion(result, truth, mask) | {"copy": _copy_score(truth, mask)})
                if len(sheets) < SHEET_GRIDS:
                    sheets.append(np.asarray(contact_sheet([Panel("sampled", result), Panel("truth", truth)], mask)))
        loss = np.concatenate(loss, axis=1).mean(axis=1)
        numbers = {f"validation/loss_sigma_{sigma}": value for sigma, value in zip(SIGMAS, loss, strict=True)}
        for name in ("all", "moving", "copy"):
            finite = [score[name] for score in scores if np.isfinite(score[name])]
            numbers[f"validation/psnr_{name}"] = float(np.mean(finite)) if finite else float("nan")
        width = max(sheet.shape[1] for sheet in sheets)
        return numbers, np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in sheets])

    return validate


def _copy_score(truth: np.ndarray, given: np.ndarray) -> float:
    """PSNR of copying the freeze-time frame of each view."""
    return psnr_by_motion(copy_freeze_time(truth, given), truth, given)["all"]


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """The fixed noise of a grid [v, t, h, w, c] or of a clip [f, h, w, c]."""
    cells, frame = shape[:-3], shape[-3:]
    return np.asarray(cell_noise(SEED, *(cells if len(cells) == 2 else (cells[0], 1)), frame)).reshape(shape)


def _as_grids(x: np.ndarray, context: dict[str, str]) -> np.ndarray:
    """Clips as grids of one view or, freeze-time videos, of one time."""
    if not context:
        return x
    return x[:, :, None] if context["context"] == "freeze_time" else x[:, None]
