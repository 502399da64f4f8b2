"""What a run reports of its average on the validation split: loss by noise level and by mask, PSNR of sampled grids, a sheet.

Where the codec's parameters are not here, as with stored latents, the samples' error is that of latents, without a sheet.
Grids are cut and masked without chance (view 0 and time 0 given, nothing dropped), noise is fixed, so the numbers of two steps
compare. The loss of each kind of mask that training draws is that of the first batch, close to pure noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.codecs import to_latents
from fourreal.data.batches import Batches
from fourreal.diffusion.denoiser import Denoiser
from fourreal.diffusion.noise import cell_noise
from fourreal.diffusion.stage import Stage
from fourreal.grid import Known
from fourreal.media.sheet import Panel, contact_sheet, stack_sheets
from fourreal.metrics.baselines import copy_freeze_time
from fourreal.metrics.pixels import psnr_by_motion
from fourreal.models.build import Params
from fourreal.training.config import TrainConfig
from fourreal.training.step import batch_loss, step_inputs

SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # midpoints of five equal buckets
SEED = 0
LATENT_ERROR = "validation/mse_latents"
SHEET_GRIDS = 2


def make_validation(
    denoiser: Denoiser, config: TrainConfig, codec: Any, decodes: bool = True
) -> Callable[[Params, int], tuple[dict[str, float], np.ndarray | None]]:
    """The evaluator `validate(params, done) -> (numbers, contact sheet)`; the batches are read once and kept.

    `codec` are the parameters of the config's codec, if they are here, so that it `decodes`.
    """
    data = Batches(config.data, config.model.conditions, config.codec)
    batches = list(data.evaluation("validation", config.eval_grids))
    few = min(config.eval_grids, config.data.batch_size)
    masked = {
        kind: list(data.evaluation("validation", few, alone)) for kind, alone in config.data.masks.alone().items()
    }
    stage = Stage(denoiser, config.codec, shift=config.sigma.shift)
    mesh = jax.sharding.get_mesh()
    whole = None if mesh.empty else NamedSharding(mesh, P())  # every process can read the results

    def losses(params: Params, codec: Any, batch: dict[str, Any], noise: jax.Array, sigma: jax.Array) -> jax.Array:
        x0 = to_latents(config.codec, codec, batch["frames"])
        return batch_loss(denoiser, params, x0, batch, jnp.full((len(x0),), sigma), noise)

    def sample(params: Params, codec: Any, batch: dict[str, Any], noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the sampled grids, the true ones), in pixels."""
        frames = batch["frames"]
        told = batch["conditions"]
        sampled, _ = stage(
            params, codec, frames, batch["given"], noise, told, valid=batch.get("valid"), steps=config.sampling_steps
        )
        return sampled, frames if frames.dtype == jnp.uint8 else config.codec.decode(codec, frames)

    def error(params: Params, codec: Any, batch: dict[str, Any], noise: jax.Array) -> jax.Array:
        """Mean squared error of the unknown latents that exist and are valid, of each grid."""
        x0, given = to_latents(config.codec, codec, batch["frames"]), batch["given"]
        known = Known(x0, given, valid=batch.get("valid"))
        sampled = stage.integrate(params, known, noise, batch["conditions"], steps=config.sampling_steps)
        weight = jnp.broadcast_to((~given & batch.get("exists", True))[..., None, None], x0.shape[:-1])
        weight = weight & batch.get("valid", True)
        squares = jnp.where(weight, jnp.mean(jnp.square(sampled - x0), axis=-1), 0)
        return jnp.sum(squares, axis=(1, 2, 3, 4)) / jnp.maximum(jnp.sum(weight, axis=(1, 2, 3, 4)), 1)

    losses, sample, error = (jax.jit(function, out_shardings=whole) for function in (losses, sample, error))

    def loss_of(params: Params, batch: dict[str, Any], sigmas: tuple[float, ...]) -> np.ndarray:
        """[sigmas, grids]."""
        noise, real = fixed_noise(config, batch["frames"]), batch["weight"] > 0
        found = [losses(params, codec, step_inputs(batch), noise, np.float32(sigma)) for sigma in sigmas]
        return np.stack(found)[:, real]

    def validate(params: Params, done: int) -> tuple[dict[str, float], np.ndarray | None]:
        loss, scores, sheets, errors = [], [], [], []
        for batch in batches:
            inputs, real = step_inputs(batch), batch["weight"] > 0
            noise = fixed_noise(config, batch["frames"])
            loss.append(loss_of(params, batch, SIGMAS))
            if not decodes:
                errors.append(np.asarray(error(params, codec, inputs, noise))[real])
                continue
            sampled, truth = (np.asarray(x) for x in sample(params, codec, inputs, noise))
            given = frames_of(config, batch["given"], truth.shape[2])
            missing = ~frames_of(config, batch.get("exists", np.ones_like(batch["given"])), truth.shape[2])
            sampled = np.where(given[..., None, None, None], truth, sampled)
            for result, true, mask, lacking in zip(sampled[real], truth[real], given[real], missing[real], strict=True):
                copy = psnr_by_motion(copy_freeze_time(true, mask), true, mask | lacking)["all"]
                scores.append(psnr_by_motion(result, true, mask | lacking) | {"copy": copy})
                if len(sheets) < SHEET_GRIDS:
                    sheets.append(np.asarray(contact_sheet([Panel("sampled", result), Panel("truth", true)], mask)))
        loss = np.concatenate(loss, axis=1).mean(axis=1)
        numbers = {f"validation/loss_sigma_{sigma}": value for sigma, value in zip(SIGMAS, loss, strict=True)}
        for kind, few in masked.items():
            values = [loss_of(params, batch, SIGMAS[-1:]) for batch in few]
            numbers[f"validation/loss_mask_{kind}"] = float(np.concatenate(values, axis=1).mean())
        if not decodes:
            return numbers | {LATENT_ERROR: float(np.concatenate(errors).mean())}, None
        for name in ("all", "moving", "copy"):
            finite = [score[name] for score in scores if np.isfinite(score[name])]
            numbers[f"validation/psnr_{name}"] = float(np.mean(finite)) if finite else float("nan")
        return numbers, stack_sheets(sheets)

    return validate


def frames_of(config: TrainConfig, chosen: np.ndarray, times: int) -> np.ndarray:
    """The frames, bool [b v t], of the latents that are chosen."""
    groups = config.codec.groups(times)
    return np.concatenate([np.repeat(chosen[..., u, None], len(group), -1) for u, group in enumerate(groups)], axis=-1)


def fixed_noise(config: TrainConfig, frames: np.ndarray) -> np.ndarray:
    """The noise of every validation grid, in the shape of a batch's latents."""
    count, views, *shape = frames.shape
    shape = config.codec.shape(*shape[:3]) if frames.dtype == np.uint8 else shape
    noise = np.asarray(cell_noise(SEED, views, shape[0], tuple(shape[1:])))
    return np.broadcast_to(noise, (count, *noise.shape))
