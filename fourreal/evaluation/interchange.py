"""A model as it lends what its streams say, and as it answers with some of that changed; see `probe.py`."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from fourreal.codecs import Codec, to_latents
from fourreal.conditions import Conditions
from fourreal.conditions.condition import complete, without
from fourreal.diffusion.denoiser import Denoiser
from fourreal.diffusion.flow import clean, interpolate, stream_gap
from fourreal.errors import UserError
from fourreal.grid import Known, shown
from fourreal.models.build import Params
from fourreal.models.fusions import Probe

KEPT, SILENT, FOREIGN = range(3)


class Scenes(NamedTuple):
    """Grids and what a model is told of them."""

    frames: UInt8[Array, "n v t h w 3"]
    given: Bool[Array, "n v u"]
    """of latents"""
    noise: Float[Array, "n v u y x c"]
    conditions: Conditions

    def some(self, index: np.ndarray) -> "Scenes":
        """Those at some places."""
        return jax.tree.map(lambda x: x[index], self)


class Lent(NamedTuple):
    """What scenes lend to others."""

    conditions: Conditions
    messages: dict[str, Any]
    """by stream, with a leading layer axis"""


class Seen(NamedTuple):
    """What a model shows of each grid; see `Probed`."""

    gap: Float[Array, "layers n"] | None
    heads_gap: Float[Array, "n"] | None
    strength: dict[str, Float[Array, "layers n"]]


def _inputs(
    denoiser: Denoiser, codec: Codec, codec_params: Any, scenes: Scenes, sigma: Any
) -> tuple[jax.Array, Known, Conditions]:
    """(the noised latents, what is known of them, all conditions)."""
    x0 = to_latents(codec, codec_params, scenes.frames)
    known = Known(x0, scenes.given)
    x = interpolate(x0, scenes.noise, jnp.broadcast_to(sigma, known.mask.shape))
    return x, known, complete(denoiser.conditions, scenes.conditions, shown(known))


def listen(
    denoiser: Denoiser, codec: Codec, params: Params, codec_params: Any, scenes: Scenes, sigma: Any
) -> tuple[Lent, Seen]:
    """What the scenes lend, and what the model shows of them, nothing changed."""
    x, known, told = _inputs(denoiser, codec, codec_params, scenes, sigma)
    sent: dict[str, Any] = {}

    def exchange(message: Any, layer: Any, stream: str) -> Any:
        if stream in sent:
            raise UserError(f"the {stream} stream sends two messages in a layer: a probe knows one")
        sent[stream] = message
        return message

    def observe(streams: Mapping[str, Any]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        messages = dict(sent)
        sent.clear()
        if len(streams) == 2:
            to, gap = {"view": streams["time"], "time": streams["view"]}, stream_gap(**streams, weight=1.0)
        else:
            to, gap = dict.fromkeys(messages, *streams.values()), None
        added = {stream: message for stream, message in messages.items() if isinstance(message, jax.Array)}
        strength = {stream: jnp.sqrt(_square(message) / _square(to[stream])) for stream, message in added.items()}
        return messages, gap, strength

    heads, x, level = denoiser.heads(params, x, sigma, known, told, probe=Probe(exchange, observe))
    messages, gap, strength = heads.observed
    heads_gap = None
    if len(heads.streams) == 2:
        view, time = (_put(denoiser, head, x, level, known) for head in heads.streams.values())
        error = _square((view + time) / 2 - known.frames)
        heads_gap = _square(view - time) / jnp.maximum(error, 1e-12)
    return Lent(told, messages), Seen(gap, heads_gap, strength)


def answer(
    denoiser: Denoiser,
    codec: Codec,
    params: Params,
    codec_params: Any,
    scenes: Scenes,
    lent: Lent,
    sigma: Any,
    messages: Mapping[str, Any],
    conditions: Mapping[str, Any],
) -> UInt8[Array, "n v t h w 3"]:
    """The frames that the model answers with, while messages and what it is told are changed.

    `messages` by stream and layer, and `conditions` by name, say KEPT, SILENT or FOREIGN.
    """
    x, known, told = _inputs(denoiser, codec, codec_params, scenes, sigma)
    for name, number in conditions.items():
        null = without(denoiser.conditions, told, frozenset({name}))[name]
        told[name] = _chosen(number, told[name], null, lent.conditions[name])

    def exchange(message: Any, layer: Any, stream: str) -> Any:
        foreign = jax.tree.map(lambda x: x[layer], lent.messages[stream])
        return _chosen(messages[stream][layer], message, jax.tree.map(jnp.zeros_like, message), foreign)

    heads, x, level = denoiser.heads(params, x, sigma, known, told, probe=Probe(exchange))
    return codec.decode(codec_params, _put(denoiser, heads.readout, x, level, known))


def _chosen(number: Any, kept: Any, silent: Any, foreign: Any) -> Any:
    """One of three trees."""
    return jax.tree.map(functools.partial(jax.lax.select_n, number), kept, silent, foreign)


def _put(denoiser: Denoiser, output: Any, x: Any, level: Any, known: Known) -> jax.Array:
    """The clean latents that a model's raw output says, the given ones as they are."""
    return jnp.where(known.mask[..., None, None, None], known.frames, clean(output, x, level, denoiser.prediction))


def _square(x: Float[Array, "n *axes"]) -> Float[Array, "n"]:
    """The mean square of each example."""
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))
