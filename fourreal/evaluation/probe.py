"""What the streams tell each other, shown by changing it: a model answers in one step while some of its messages are changed.

    kept       as they are
    silent     zeros
    foreign    those of another scene at the same noise level, cells given alike

What the score loses is what the message was worth: a model that scores the same with another scene's messages has parameters
there, not communication. The same is done to every condition. Beside it, layer by layer,

    strength   |what a stream is sent| / |the stream|          gap    |x_v - x_t|^2 / ((|x_v|^2 + |x_t|^2) / 2)

A message is what `Run.changed` lets out of a stream: what a sync layer adds to the other one (soft, hard), what the block over
either axis adds (sequential), the keys and values that other views see (fused).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from fourreal.codecs import Codec, PixelCodec, to_latents
from fourreal.conditions import Conditions
from fourreal.conditions.condition import complete, without
from fourreal.diffusion.denoiser import Denoiser
from fourreal.diffusion.flow import clean, interpolate, stream_gap
from fourreal.errors import UserError
from fourreal.grid import Known, shown
from fourreal.metrics.pixels import psnr
from fourreal.models.build import Params
from fourreal.models.fusions import Probe

KEPT, SILENT, FOREIGN = range(3)
CHANGES = ("kept", "silent", "foreign")
SIGMAS = (0.3, 0.5, 0.7, 0.9, 1.0)
TOGETHER = 8  # grids in one program


class Row(NamedTuple):
    """The scores of a model with one thing changed, at one noise level."""

    what: str
    """messages, or the name of a condition"""
    change: str
    """kept, silent or foreign"""
    stream: str | None
    """whose messages; None: those of all"""
    layer: int | None
    """of which layer, from 0; None: of all"""
    sigma: float
    psnr: list[float]
    """of every grid, over the unknown pixels asked for"""

    @property
    def label(self) -> str:
        """As it stands in tables."""
        if self.change == CHANGES[KEPT]:
            return "as it is"
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.what} {self.change}" + (f", {self.stream}" if self.stream else "") + layer


@dataclasses.dataclass(frozen=True)
class Probed:
    """What was found, layers from the first on."""

    rows: list[Row]
    heads_gap: list[float]
    """by sigma: mean squared distance of the two streams' heads over that of their mean from the truth; empty for one stream"""
    gap: list[list[float]]
    """by sigma and layer; empty for one stream"""
    strength: dict[str, list[list[float]]]
    """by the sending stream, then sigma and layer; of messages that are added to a stream"""
    sigmas: tuple[float, ...]

    def mean(self, sigma: float, what: str = "messages", change: str = "kept", **of: Any) -> float:
        """The mean PSNR of a row."""
        return float(np.mean(self.psnr(sigma, what, change, **of)))

    def psnr(
        self, sigma: float, what: str = "messages", change: str = "kept", stream: str | None = None, layer: Any = None
    ) -> Float[np.ndarray, "grids"]:
        """The PSNR of every grid of a row. Raises KeyError where there is none."""
        for row in self.rows:
            if row[:5] == (what, change, stream, layer, sigma):
                return np.array(row.psnr)
        raise KeyError(f"{what} {change} {stream} {layer} at sigma {sigma}")

    def to_json(self) -> dict[str, Any]:
        """All of it as plain lists, numbers to four digits."""
        found = dataclasses.asdict(self) | {"rows": [row._asdict() for row in self.rows]}
        return jax.tree.map(lambda x: round(x, 4) if isinstance(x, float) else x, found)


def probe(
    denoiser: Denoiser,
    params: Params,
    frames: UInt8[np.ndarray, "n v t h w 3"],
    given: Bool[np.ndarray, "n v t"],
    noise: Float[Array, "n v u y x c"],
    conditions: Conditions | None = None,
    *,
    codec: Codec = PixelCodec(),
    sigmas: Sequence[float] = SIGMAS,
    layers: bool = True,
    where: Bool[np.ndarray, "n v t h w"] | None = None,
) -> Probed:
    """Probes a model on some grids, at least two, in the order in which they lend each other messages.

    Args:
        denoiser: of the model; its readout is what is scored.
        params: of the model.
        frames: true grids, of which the model sees the given cells and the others' noise.
        given: which frames are given, alike in all grids.
        noise: in the shape of the latents.
        conditions: by name; None: their defaults.
        codec: between frames and latents.
        sigmas: noise levels.
        layers: also change every layer's messages by themselves.
        where: pixels to score; only those of unknown cells count. None: all of these.
    """
    if len(frames) < 2 or not (given == given[:1]).all():
        raise UserError(
            f"a probe takes messages from other grids: expected two or more with the same given cells, found {len(frames)}"
        )
    unknown = ~given[..., None, None] if where is None else ~given[..., None, None] & where
    depth = jax.tree.leaves(params["base"]["blocks"])[0].shape[0]
    told = conditions or {}
    cells = np.stack([codec.known(mask) for mask in given])
    names, streams = _told(denoiser, told, noise, cells), _senders(denoiser, params, noise, cells, told)
    ask = jax.jit(functools.partial(_answer, denoiser, codec))
    parts = np.array_split(np.arange(len(frames)), max(1, len(frames) // TOGETHER))

    def run(sigma: float, modes: Mapping[str, np.ndarray], changed: Mapping[str, int]) -> list[Any]:
        """What every part answers."""
        answers = []
        for part in parts:
            values = jax.tree.map(lambda x: x[part], told)  # noqa: B023
            level = np.float32(sigma)
            answers.append(ask(params, frames[part], cells[part], noise[part], values, level, modes, changed))
        return answers

    rows, heads_gap, gap, strength = [], [], [], {}
    nothing = {stream: np.zeros(depth, np.int32) for stream in streams}
    keep = {name: KEPT for name in names}
    changes = [("messages", KEPT, None, None, nothing, keep)]
    for change in (SILENT, FOREIGN):
        for stream in [None, *(streams if len(streams) > 1 else [])]:
            chosen = {s: np.full(depth, change * (stream in (None, s)), np.int32) for s in streams}
            changes += [("messages", change, stream, None, chosen, keep)] if streams else []
        for stream in streams if layers else []:
            for layer in range(depth):
                chosen = nothing | {stream: change * np.eye(depth, dtype=np.int32)[layer]}
                changes.append(("messages", change, stream, layer, chosen, keep))
        changes += [(name, change, None, None, nothing, keep | {name: change}) for name in names]
    for sigma in sigmas:
        for what, change, stream, layer, modes, changed in changes:
            answers = run(sigma, modes, changed)
            out = np.concatenate([np.asarray(answer[0]) for answer in answers])
            scores = [min(psnr(*each), 99.0) for each in zip(out, frames, unknown, strict=True)]
            rows.append(Row(what, CHANGES[change], stream, layer, sigma, scores))
            if change == KEPT:
                seen = jax.tree.map(lambda *x: np.concatenate(x, axis=-1).mean(axis=-1), *(a[1] for a in answers))
                heads = np.concatenate([np.asarray(a[2]) for a in answers])
                if "gap" in seen:
                    gap.append(seen.pop("gap").tolist())
                    heads_gap.append(float(heads.mean()))
                for name, values in seen.items():
                    strength.setdefault(name, []).append(values.tolist())
    return Probed(rows, heads_gap, gap, strength, tuple(sigmas))


def _told(denoiser: Denoiser, conditions: Conditions, noise: Any, cells: Any) -> list[str]:
    """The names of the conditions that the model sees, given or by default."""
    return list(jax.eval_shape(lambda x: complete(denoiser.conditions, conditions, Known(x, cells)), noise))


def _senders(denoiser: Denoiser, params: Params, noise: Any, cells: Any, conditions: Conditions) -> list[str]:
    """The names of the streams that send messages."""
    found: dict[str, None] = {}

    def listen(message: Any, layer: Any, stream: str) -> Any:
        found[stream] = None
        return message

    def trace(x: Any) -> Any:
        return denoiser.heads(params, x, jnp.float32(1), Known(x, cells), conditions, probe=Probe(exchange=listen))

    jax.eval_shape(trace, noise)
    return list(found)


def _answer(
    denoiser: Denoiser,
    codec: Codec,
    params: Params,
    frames: Any,
    cells: Any,
    noise: Any,
    conditions: Conditions,
    sigma: Any,
    modes: Mapping[str, Any],
    changed: Mapping[str, Any],
) -> tuple[Any, dict[str, Any], Any]:
    """(the frames that the model answers, what it shows by layer [layers n], the gap of its heads [n])."""
    codec_params = codec.parameters()
    x0 = to_latents(codec, codec_params, frames)
    known = Known(x0, cells)
    x = interpolate(x0, noise, jnp.broadcast_to(sigma, known.mask.shape))
    told = complete(denoiser.conditions, conditions, shown(known))
    for name, mode in changed.items():
        null = without(denoiser.conditions, told, frozenset({name}))[name]
        told[name] = jax.tree.map(functools.partial(_changed, mode), told[name], null)
    sent: dict[str, Any] = {}

    def exchange(message: Any, layer: Any, stream: str) -> Any:
        if isinstance(message, jax.Array):
            sent[stream] = _size(message)
        return jax.tree.map(lambda x: _changed(modes[stream][layer], x, jnp.zeros_like(x)), message)

    def observe(streams: Mapping[str, Any]) -> dict[str, Any]:
        of = {"view": "time", "time": "view"}  # whom a stream sends to
        seen = {
            name: jnp.sqrt(size / _size(streams.get(of.get(name, name), next(iter(streams.values())))))
            for name, size in sent.items()
        }
        return seen | ({"gap": stream_gap(streams["view"], streams["time"], 1.0)} if len(streams) == 2 else {})

    heads, seen_x, level = denoiser.heads(params, x, sigma, known, told, probe=Probe(exchange, observe))

    def x0_of(output: Any) -> Any:
        return jnp.where(known.mask[..., None, None, None], x0, clean(output, seen_x, level, denoiser.prediction))

    answer = x0_of(heads.readout)
    gap = jnp.zeros(len(frames))
    if len(heads.streams) == 2:
        view, time = map(x0_of, heads.streams.values())
        mean = (view + time) / 2
        gap = _squares(view - time) / jnp.maximum(_squares(mean - x0), 1e-12)
    return codec.decode(codec_params, answer), heads.observed, gap


def _changed(mode: Any, value: Any, null: Any) -> Any:
    """A value as it is, its null, or that of the example before it."""
    return jnp.where(mode == SILENT, null, jnp.where(mode == FOREIGN, jnp.roll(value, 1, axis=0), value))


def _size(x: Float[Array, "b *axes"]) -> Float[Array, "b"]:
    return jnp.mean(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))


def _squares(x: Float[Array, "b *axes"]) -> Float[Array, "b"]:
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))
