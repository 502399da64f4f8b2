"""Rectified flow: the path from frames to noise, what the network's output means, and the training loss.

    x_sigma = (1 - sigma) x0 + sigma eps        u = eps - x0 = dx/dsigma        sigma in [0, 1], 1 = noise
    prediction u:   u = output
    prediction x0:  u = (x_sigma - output) / max(sigma, 0.05)

The loss is |u - (eps - x0)|^2, or less of it where noise is low or the error large (`LossConfig`), over unknown cells and valid
pixels, averaged over each example's own unknown pixels and then over the batch, so that accumulated or sharded batches give the
mean of one big batch.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fourreal.errors import UserError

SIGMA_FLOOR = 0.05  # also the smallest sigma drawn in training: below it, u of an x0-model is its error, much enlarged


@dataclasses.dataclass(frozen=True)
class SigmaConfig:
    """How noise levels are drawn in training."""

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    """logit_normal: logit(sigma) ~ N(mean, std); or uniform"""
    mean: float = 0.8
    """mean of logit(sigma): many redundant frames want more noise than an image"""
    std: float = 0.8
    """standard deviation of logit(sigma)"""
    shift: float = 1.0
    """s in sigma <- s sigma / (1 + (s - 1) sigma), applied in training and in sampling; above 1: more noise"""
    pure: float = 0.0
    """share of the examples at sigma 1, whatever the distribution says: pure noise, from which sampling starts"""

    def __post_init__(self):
        if self.distribution not in ("logit_normal", "uniform"):
            raise UserError(f"distribution '{self.distribution}': expected logit_normal or uniform")
        if self.std <= 0 or self.shift <= 0:
            raise UserError(f"std {self.std}, shift {self.shift}: both must be above 0")
        if not 0 <= self.pure <= 1:
            raise UserError(f"sigma.pure is {self.pure}: give a share from 0 to 1")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What a training minimises; the defaults are the plain loss of the readout."""

    most: float | None = None
    """largest weight of the squared error of x0: min(1 / sigma^2, this), so 1 is the plain error of x0; none: 1 / sigma^2,
    the squared error of the velocity"""
    huber: float | None = None
    """c of the pseudo-Huber form 2 c^2 (sqrt(1 + e^2 / c^2) - 1) of an error e of x0, pixels in [-1, 1]: square below c,
    straight above, so one large error counts less than many small ones and edges blur less; none: e^2"""
    lpips: float = 0.0
    """weight of LPIPS (AlexNet) between the answer and the truth, mean over unknown cells: for upsamplers of pixels, which are
    asked for pictures that look right; with the extra `eval`"""
    heads: float = 0.0
    """weight of the mean loss of the streams' own heads, beside the loss of the readout"""
    gap: float = 0.0
    """weight of the squared distance between the two streams, relative to their own squares, mean over the layers"""
    gap_weight: Literal["even", "depth", "clean"] = "even"
    """even; depth: it grows with the layer from 1 / layers to 1; clean: 1 - sigma, so streams agree as the noise goes"""

    def __post_init__(self):
        if self.most is not None and self.most <= 0:
            raise UserError(f"loss.most is {self.most}: give a number above 0, or none")
        if self.huber is not None and self.huber <= 0:
            raise UserError(f"loss.huber is {self.huber}: give a number above 0, or none")
        if self.gap_weight not in ("even", "depth", "clean"):
            raise UserError(f"loss.gap_weight is '{self.gap_weight}': expected even, depth or clean")
        for name in ("heads", "gap", "lpips"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name} is {getattr(self, name)}: give 0 or more")


def shift_sigma(sigma: jax.Array, shift: float) -> jax.Array:
    """s sigma / (1 + (s - 1) sigma); keeps 0 and 1."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def sample_sigma(key: jax.Array, config: SigmaConfig) -> Float[Array, ""]:
    """One training noise level, from SIGMA_FLOOR to 1."""
    if config.distribution == "uniform":
        sigma = jax.random.uniform(key)
    else:
        sigma = jax.nn.sigmoid(config.mean + config.std * jax.random.normal(key))
    sigma = jnp.maximum(shift_sigma(sigma, config.shift), SIGMA_FLOOR)
    if config.pure:
        sigma = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1), config.pure), 1.0, sigma)
    return sigma


def per_cell(sigma: Float[Array, "*cells"]) -> Float[Array, "*cells 1 1 1"]:
    """A noise level per cell, ready to broadcast over its pixels."""
    return sigma[..., None, None, None]


def interpolate(x0: jax.Array, eps: jax.Array, sigma: Float[Array, "*cells"]) -> jax.Array:
    """x_sigma = (1 - sigma) x0 + sigma eps, frames `[*cells, h, w, c]`."""
    return (1.0 - per_cell(sigma)) * x0 + per_cell(sigma) * eps


def velocity(output: jax.Array, x: jax.Array, sigma: Float[Array, "*cells"], prediction: str) -> jax.Array:
    """u from the network's raw output. The clamp comes before the division: given cells have sigma 0."""
    return output if prediction == "u" else (x - output) / jnp.maximum(per_cell(sigma), SIGMA_FLOOR)


def clean(output: jax.Array, x: jax.Array, sigma: Float[Array, "*cells"], prediction: str) -> jax.Array:
    """x0 from the network's raw output."""
    return output if prediction == "x0" else x - per_cell(sigma) * output


def masked_mean(
    values: Float[Array, "b *cells h w c"], left_out: Bool[Array, "b *cells"], valid: Bool[Array, "b *cells h w"] | None
) -> Float[Array, "b"]:
    """Mean over each example's valid pixels of the cells that are not left out; 0 for an example that has none."""
    weight = jnp.where(left_out[..., None, None, None], 0.0, 1.0 if valid is None else valid[..., None])
    weight = jnp.broadcast_to(weight, (*values.shape[:-1], 1))
    pixels = tuple(range(1, values.ndim))
    return jnp.sum(values * weight, axis=pixels) / jnp.maximum(jnp.sum(weight, axis=pixels) * values.shape[-1], 1.0)


def flow_loss(
    output: Float[Array, "b *cells h w c"],
    x: Float[Array, "b *cells h w c"],
    x0: Float[Array, "b *cells h w c"],
    eps: Float[Array, "b *cells h w c"],
    sigma: Float[Array, "b *cells"],
    left_out: Bool[Array, "b *cells"],
    prediction: str,
    valid: Bool[Array, "b *cells h w"] | None = None,
    most: float | None = None,
    huber: float | None = None,
) -> Float[Array, "b"]:
    """The loss of each example; cells that are left out (given or missing) and invalid pixels get no gradient.

    `most`, `huber`: see `LossConfig`. The error of x0 is sigma times that of the velocity.
    """
    error, variance = jnp.square(velocity(output, x, sigma, prediction) - (eps - x0)), jnp.square(per_cell(sigma))
    if huber is not None:
        error = 2 * error / (1 + jnp.sqrt(1 + error * variance / huber**2))  # the form without its cancellation
    if most is not None:
        error = error * jnp.minimum(1.0, most * variance)
    return masked_mean(error, left_out, valid)


def stream_gap(
    view: Float[Array, "b v t s d"], time: Float[Array, "b v t s d"], weight: Float[Array, "b v t"] | float
) -> Float[Array, "b"]:
    """|view - time|^2 / ((|view|^2 + |time|^2) / 2) of every cell, weighted, mean over an example's cells.

    The denominator gets no gradient: streams shall agree, not grow.
    """
    apart, size = (jnp.mean(x, axis=(-1, -2)) for x in (jnp.square(view - time), jnp.square(view) + jnp.square(time)))
    return jnp.mean(weight * apart / (jax.lax.stop_gradient(size) / 2 + 1e-12), axis=(1, 2))
