"""One training step, pure: (state, batch) -> (state, metrics).

    noise, sigma of example i  = random numbers keyed by (seed, purpose, step, place in the global batch)
    x                          = (1 - sigma) x0 + sigma eps, clean where given, noise where missing or invalid
    loss                       = see diffusion/flow.py, over unknown cells; as its weights say, of every head, and the gap

A step whose loss, gradient or update is not finite changes nothing but the step number; the loop sees it in the metrics.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Bool, Float

from fourreal.codecs import to_latents
from fourreal.conditions.condition import axes_of, complete, drop_examples
from fourreal.diffusion import flow
from fourreal.diffusion.denoiser import Denoiser
from fourreal.diffusion.noise import normals
from fourreal.grid import Known, cell_sigma, shown
from fourreal.metrics.lpips import distance, read_weights
from fourreal.models.build import Params, model_table
from fourreal.models.fusions import Fusion, Probe
from fourreal.parallel.activations import place, split_examples
from fourreal.training.config import TrainConfig
from fourreal.training.optimizer import make_optimizer, update_average
from fourreal.training.state import State, join_params

SIGMA, NOISE = 0, 1  # purposes of random numbers
INPUTS = ("frames", "given", "exists", "valid", "conditions", "dropped")  # of a batch, in a step


def example_keys(seed: int, purpose: int, step: jax.Array, count: int) -> jax.Array:
    """One key an example of the global batch, the same on every device count."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(count))


def step_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch goes into a step."""
    return {name: batch[name] for name in INPUTS if name in batch}


def input_axes(config: TrainConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """How many leading axes `b v t` each array has, see `layout.batch_shapes`."""
    by_name = {condition.name: condition for condition in config.model.conditions}

    def axes(name: str, value: Any) -> Any:
        if name == "conditions":
            return {key: axes_of(by_name[key], each) for key, each in value.items()}
        return jax.tree.map(lambda x: min(x.ndim, 3), value)

    return {name: axes(name, value) for name, value in inputs.items()}


def placed_inputs(config: TrainConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs where the model has its examples; they may come cut otherwise, see `layout.reading_lead`."""
    lead = fusion_of(config).lead
    return jax.tree.map(lambda x, axes: place(x, lead, axes), inputs, input_axes(config, inputs))


def fusion_of(config: TrainConfig) -> Fusion:
    """The fusion of a run."""
    return config.grid.make_fusion()


def batch_loss(
    denoiser: Denoiser,
    params: Params,
    x0: jax.Array,
    examples: dict[str, Any],
    sigma: jax.Array,
    eps: jax.Array,
    loss: flow.LossConfig = flow.LossConfig(),
) -> jax.Array:
    """The loss of each example at one noise level an example; x0 are clean latents, `examples` the rest of a batch."""
    recorded = recorded_pixels(examples)
    if recorded is not None:
        x0 = jnp.where(recorded, x0, 0)  # whatever is stored elsewhere reaches nothing
    known = Known(x0, examples["given"], examples.get("exists"), examples.get("valid"))
    conditions = complete(denoiser.conditions, examples.get("conditions", {}), shown(known))
    conditions = drop_examples(denoiser.conditions, conditions, examples.get("dropped", {}))
    x = flow.interpolate(x0, eps, cell_sigma(sigma, jnp.zeros_like(known.mask)))
    if recorded is not None:
        x = jnp.where(recorded, x, eps)
    left_out = known.mask if known.exists is None else known.mask | ~known.exists

    def of(output: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
        total = flow.flow_loss(
            output, x, x0, eps, level, left_out, denoiser.prediction, known.valid, loss.most, loss.huber
        )
        if loss.lpips:
            answer = flow.clean(output, x, level, denoiser.prediction)
            total += loss.lpips * mean_lpips(
                answer if recorded is None else jnp.where(recorded, answer, x0), x0, left_out
            )
        return total

    if not loss.heads and not loss.gap:
        return of(*denoiser.output(params, x, sigma, known, conditions))
    weight = 1 - cell_sigma(sigma, known.mask) if loss.gap_weight == "clean" else 1.0
    probe = Probe(observe=lambda streams: flow.stream_gap(**streams, weight=weight)) if loss.gap else Probe()
    heads, x, level = denoiser.heads(params, x, sigma, known, conditions, probe=probe)
    total = of(heads.readout, x, level)
    if loss.heads:
        total += loss.heads * sum(of(head, x, level) for head in heads.streams.values()) / len(heads.streams)
    if loss.gap:
        layers = len(heads.observed)
        depth = (jnp.arange(layers) + 1) / layers if loss.gap_weight == "depth" else jnp.ones(layers)
        total += loss.gap * jnp.mean(depth[:, None] * heads.observed, axis=0)
    return total


def mean_lpips(
    answer: Float[Array, "b v t h w 3"], truth: Float[Array, "b v t h w 3"], left_out: Bool[Array, "b v t"]
) -> Float[Array, "b"]:
    """LPIPS by AlexNet, mean over each example's cells that are not left out; 0 for an example that has none.

    The network's weights, 10 MB, become constants of the program.
    """
    frames = (rearrange(x, "b v t h w c -> (b v t) h w c") for x in (answer, truth))
    found = distance("alex", read_weights("alex"), *frames).reshape(left_out.shape)
    weight = jnp.where(left_out, 0.0, 1.0)
    return jnp.sum(weight * found, axis=(1, 2)) / jnp.maximum(jnp.sum(weight, axis=(1, 2)), 1.0)


def recorded_pixels(examples: dict[str, Any]) -> jax.Array | None:
    """The pixels of a batch that exist and are valid, bool [b v t #h #w 1]; None: all."""
    exists, valid = examples.get("exists"), examples.get("valid")
    if valid is None:
        return None if exists is None else exists[..., None, None, None]
    return valid[..., None] if exists is None else valid[..., None] & exists[..., None, None, None]


def in_parts(
    function: Callable[[Params, Any], Any], config: TrainConfig, params: Params, examples: dict[str, Any]
) -> Any:
    """The mean of `function(params, part)` over the parts that `optim.microbatch` makes of a batch, one after another."""
    lead = fusion_of(config).lead
    parts = jax.tree.map(lambda x: split_examples(x, config.optim.microbatch, lead), examples)
    count = len(parts["frames"])
    if count == 1:
        return function(params, examples)

    def add(total: Any, part: dict[str, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(params, part)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, params, examples))
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total)


def make_train_step(denoiser: Denoiser, config: TrainConfig) -> Callable[[State, dict], tuple[State, dict]]:
    """The step as a function of (state, inputs), the inputs those of `step_inputs`."""
    optimizer = make_optimizer(config.optim, config.steps, model_table(config.model, config.grid))

    def train_step(state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        batch = placed_inputs(config, batch)
        frames = batch["frames"]
        sigma_keys, noise_keys = (
            example_keys(config.seed, purpose, state["step"], len(frames)) for purpose in (SIGMA, NOISE)
        )
        latents = jax.eval_shape(lambda x: to_latents(config.codec, state["codec"], x), frames)
        sigma = jax.vmap(lambda key: flow.sample_sigma(key, config.sigma))(sigma_keys)
        eps = normals(noise_keys, latents.shape[1:])

        def mean_loss(trained: Params, part: dict[str, Any]) -> jax.Array:
            x0 = to_latents(config.codec, state["codec"], part["frames"])
            params = join_params(trained, state["frozen"])
            return jnp.mean(batch_loss(denoiser, params, x0, part, part["sigma"], part["eps"], config.loss))

        examples = {**batch, "sigma": sigma, "eps": eps}
        loss, gradient = in_parts(jax.value_and_grad(mean_loss), config, state["params"], examples)
        updates, opt = optimizer.update(gradient, state["opt"], state["params"])
        params = jax.tree.map(jnp.add, state["params"], updates)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(gradient), "update_norm": optax.global_norm(updates)}
        moved = {"params": params, "ema": update_average(state["ema"], params, state["step"], config.optim), "opt": opt}
        finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
        kept = {name: state[name] for name in moved}
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, kept)
        return {"step": state["step"] + 1, "frozen": state["frozen"], "codec": state["codec"], **new}, metrics

    return train_step
