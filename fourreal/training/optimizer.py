"""AdamW or Muon with warm-up and cosine decay, clipping, accumulation and an average of the parameters, all from optax.

Muon (Jordan et al. 2024) takes the layers' matrices, of blocks and sync, AdamW the rest. Its updates are scaled to the size of
AdamW's, 0.2 sqrt(max(in, out)) for an orthogonal one (Liu et al. 2025), so that one learning rate serves both.
"""

import dataclasses
import math
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from fourreal.errors import UserError
from fourreal.models.build import Params
from fourreal.parallel.layout import Table


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of the layers and adamw for the rest"""
    lr: float = 1e-3
    """peak learning rate"""
    warmup: int = 50
    """steps of linear warm-up"""
    sync_lr: float | None = None
    """peak learning rate of the sync layers and their projection of sigma; none: that of the others"""
    final_lr: float = 0.02
    """learning rate at the end, as a share of the peak"""
    weight_decay: float = 0.01
    """decay of the parameters; of matrices only, never of norms, biases, tables and vectors"""
    beta1: float = 0.9
    """AdamW's decay of the first moment"""
    beta2: float = 0.99
    """AdamW's decay of the second moment"""
    momentum: float = 0.95
    """Muon's decay of its momentum"""
    clip: float = 1.0
    """largest global norm of a gradient"""
    accumulate: int = 1
    """steps whose gradients are averaged into one update"""
    microbatch: int | None = None
    """within a step, examples of a device whose gradients are computed at once, at most; then the next: it saves memory"""
    ema: float = 0.999
    """decay of the parameters' average, at most (1 + n) / (10 + n) after n updates"""

    def __post_init__(self):
        for name in ("lr", "clip", "sync_lr"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"optim.{name} is {getattr(self, name)}: give a number above 0")
        if self.kind not in ("adamw", "muon"):
            raise UserError(f"optim.kind is '{self.kind}': expected adamw or muon")
        for name in ("final_lr", "beta1", "beta2", "momentum", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} is {getattr(self, name)}: give a number from 0 to 1")
        if self.accumulate < 1 or self.warmup < 0 or self.weight_decay < 0:
            raise UserError(
                f"optim.accumulate {self.accumulate}, warmup {self.warmup}, weight_decay {self.weight_decay}: "
                "give at least 1, 0 and 0"
            )
        if self.microbatch is not None and self.microbatch < 1:
            raise UserError(f"optim.microbatch is {self.microbatch}: give at least 1, or none for all at once")


def learning_rate(config: OptimConfig, steps: int):
    """The schedule over updates: linear warm-up to the peak, above 0 from the start, then cosine to `final_lr` times it."""
    updates = max(steps // config.accumulate, 1)
    warmup = min(config.warmup // config.accumulate, updates - 1)
    return optax.warmup_cosine_decay_schedule(
        config.lr / (warmup + 1), config.lr, warmup, updates, config.lr * config.final_lr
    )


def make_optimizer(config: OptimConfig, steps: int, table: Table = MappingProxyType({})):
    """The optax transformation for a run of `steps` steps; `table` tells which parameters are those of the sync layers."""

    def decayed(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    def of_sync(params: Params) -> Params:
        def group(path: tuple, _: jax.Array) -> str:
            return table[jax.tree_util.keystr(path, simple=True, separator=".")].group

        return jax.tree_util.tree_map_with_path(lambda *at: group(*at) == "sync", params)

    rate = learning_rate(config, steps)
    update = optax.adamw(rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed)
    if config.kind == "muon":
        update = optax.partition({"muon": _muon(config, rate), "adamw": update}, _of_layers)
    parts = [optax.clip_by_global_norm(config.clip), update]
    if config.sync_lr is not None:
        parts.append(optax.masked(optax.scale(config.sync_lr / config.lr), of_sync))
    chain = optax.chain(*parts)
    return optax.MultiSteps(chain, config.accumulate) if config.accumulate > 1 else chain


def _muon(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon of one matrix a layer: of the axes after the layers', the first half is the input, the other one the output."""

    def axes(x: jax.Array) -> contrib.MuonDimensionNumbers:
        half = (x.ndim + 1) // 2
        return contrib.MuonDimensionNumbers(tuple(range(1, half)), tuple(range(half, x.ndim)))

    def sized(x: jax.Array) -> jax.Array:
        return 0.2 * max(math.prod(x.shape[axis] for axis in side) for side in axes(x)) ** 0.5 * x

    return optax.chain(
        contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=lambda params: jax.tree.map(axes, params)),
        optax.stateless(lambda updates, _: jax.tree.map(sized, updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def _of_layers(params: Params) -> Params:
    """`muon` for the stacked matrices of the layers, `adamw` for the rest."""

    def label(path: tuple, x: jax.Array) -> str:
        return "muon" if path[-1].key == "kernel" and x.ndim in (3, 5) else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def update_average(average: Params, params: Params, step: jax.Array, config: OptimConfig) -> Params:
    """The average after 0-based `step`; it moves when the parameters did."""
    updates = (step + 1) // config.accumulate
    decay = jnp.minimum(config.ema, (1.0 + updates) / (10.0 + updates))
    moved = (step + 1) % config.accumulate == 0
    return optax.incremental_update(params, average, jnp.where(moved, 1.0 - decay, 0.0))
