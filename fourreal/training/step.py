"""One training step, pure: (state, batch) -> (state, metrics).

    noise, sigma of example i  = random numbers keyed by (seed, purpose, step, place in the global batch)
    x                          = (1 - sigma) x0 + sigma eps, clean where given
    loss                       = see diffusion/flow.py, over unknown cells

A step whose loss or gradient is not finite changes nothing but the step number; the loop sees it in the metrics and stops.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fourreal.config import TrainConfig
from fourreal.diffusion import flow
from fourreal.grid import cell_sigma, to_unit
from fourreal.models.build import Params
from fourreal.models.cameras import Cameras
from fourreal.parallel.activations import split_examples
from fourreal.parallel.mesh import LEAD
from fourreal.training.optimizer import make_optimizer, update_average
from fourreal.training.state import State, join_params

SIGMA, NOISE = 0, 1  # purposes of random numbers
CAMERAS = ("K", "c2w", "cameras_known")  # what a batch tells a model that takes cameras


def example_keys(seed: int, purpose: int, step: jax.Array, count: int) -> jax.Array:
    """One key an example of the global batch, the same on every device count."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(count))


def batch_cameras(config: TrainConfig, batch: dict[str, jax.Array]) -> dict[str, Cameras]:
    """The batch's cameras as a condition of the model, for a model that takes them."""
    return {"cameras": Cameras(batch["K"], batch["c2w"], known=batch["cameras_known"])} if config.model.cameras else {}


def batch_loss(
    forward: Callable,
    params: Params,
    frames: jax.Array,
    given: jax.Array,
    sigma: jax.Array,
    eps: jax.Array,
    prediction: str,
    **conditions: Any,
) -> jax.Array:
    """The loss of each example at one noise level an example; `frames` are uint8 pixels, or latents in floating point."""
    x0 = to_unit(frames) if frames.dtype == jnp.uint8 else frames
    sigma = cell_sigma(sigma, given)
    x = flow.interpolate(x0, eps, sigma)
    return flow.flow_loss(forward(params, x, sigma, given, **conditions), x, x0, eps, sigma, given, prediction)


def in_parts(
    function: Callable[[Params, Any], Any], config: TrainConfig, params: Params, examples: dict[str, Any]
) -> Any:
    """The mean of `function(params, part)` over the parts that `optim.microbatch` makes of a batch, one after another."""
    parts = jax.tree.map(lambda x: split_examples(x, config.optim.microbatch, LEAD[config.data.kind]), examples)
    count = len(parts["frames"])
    if count == 1:
        return function(params, examples)

    def add(total: Any, part: dict[str, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(params, part)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, params, examples))
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total)


def make_train_step(forward: Callable, config: TrainConfig) -> Callable[..., tuple[State, dict]]:
    """The step as a function of (state, batch, embedded text); clips also name their `context`, a static argument."""
    optimizer = make_optimizer(config.optim, config.steps)

    def train_step(
        state: State, batch: dict[str, jax.Array], text: jax.Array | None = None, **context: str
    ) -> tuple[State, dict[str, Any]]:
        frames = batch["frames"]
        sigma_keys, noise_keys = (
            example_keys(config.seed, purpose, state["step"], frames.shape[0]) for purpose in (SIGMA, NOISE)
        )
        sigma = jax.vmap(lambda key: flow.sample_sigma(key, config.sigma))(sigma_keys)
        eps = jax.vmap(lambda key: jax.random.normal(key, frames.shape[1:]))(noise_keys)

        examples = {"frames": frames, "given": batch["given"], "sigma": sigma, "eps": eps}
        examples |= batch_cameras(config, batch) | ({} if text is None else {"text": text})
        static = {"prediction": config.model.prediction} | context

        def mean_loss(trained: Params, examples: dict[str, Any]) -> jax.Array:
            return jnp.mean(batch_loss(forward, join_params(trained, state["frozen"]), **examples, **static))

        loss, gradient = in_parts(jax.value_and_grad(mean_loss), config, state["params"], examples)
        updates, opt = optimizer.update(gradient, state["opt"], state["params"])
        params = jax.tree.map(jnp.add, state["params"], updates)
        norm = optax.global_norm(gradient)
        moved = {"params": params, "ema": update_average(state["ema"], params, state["step"], config.optim), "opt": opt}
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = {name: state[name] for name in moved}
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        metrics = {"loss": loss, "grad_norm": norm}
        return {"step": state["step"] + 1, "frozen": state["frozen"], **new}, metrics

    return train_step
