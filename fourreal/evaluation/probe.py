"""What the streams tell each other, shown by changing it: a model answers in one step while some of its messages are changed.

    kept       as they are
    silent     zeros
    foreign    those of another scene, itself as it is: the grid before, at the same noise level, the same cells given

What the score loses is what the message was worth: a model that scores the same with another scene's messages has parameters
there, not communication. The same is done to every condition. Beside it, layer by layer,

    strength   |what a stream is sent| / |that stream then|          gap    |x_v - x_t|^2 / ((|x_v|^2 + |x_t|^2) / 2)

A message is what `Run.changed` lets out of a stream, once a layer: what a sync layer adds to the other one (soft, hard), what
the block over either axis adds (sequential), the keys and values that other views see (fused).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, UInt8

from fourreal.codecs import Codec, PixelCodec
from fourreal.conditions import Conditions
from fourreal.diffusion.denoiser import Denoiser
from fourreal.diffusion.noise import cell_noise
from fourreal.errors import UserError
from fourreal.evaluation.evaluate import EvaluationGrid
from fourreal.evaluation.interchange import FOREIGN, KEPT, SILENT, Scenes, answer, listen
from fourreal.evaluation.scoring import EXACT
from fourreal.metrics.pixels import psnr
from fourreal.models.build import Params
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.sampling.cascade import Cascade, Pipeline
from fourreal.scene import reduced_cameras, reduced_frames

CHANGES = ("kept", "silent", "foreign")
MESSAGES = "messages"
SIGMAS = (0.3, 0.5, 0.7, 0.9, 1.0)
TOGETHER = 8  # grids in one program, whose messages of all layers are in memory


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
    """of every grid in dB, over the unknown pixels asked for"""


@dataclasses.dataclass(frozen=True)
class Probed:
    """What was found, layers from the first on; numbers without a grid are means over the grids."""

    rows: list[Row]
    heads_gap: list[float]
    """by sigma: mean squared distance of the two streams' heads over that of their mean from the truth; empty for one stream"""
    gap: list[list[float]]
    """by sigma and layer; empty for one stream"""
    strength: dict[str, list[list[float]]]
    """by the sending stream, then sigma and layer; of messages that are added to a stream"""
    sigmas: tuple[float, ...]

    def mean(self, sigma: float, what: str = MESSAGES, change: str = "kept", **of: Any) -> float:
        """The mean PSNR of a row."""
        return float(np.mean(self.psnr(sigma, what, change, **of)))

    def psnr(
        self, sigma: float, what: str = MESSAGES, change: str = "kept", stream: str | None = None, layer: Any = None
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


class Change(NamedTuple):
    """What a row changes: as the row says it, and as a model is asked for it."""

    what: str
    change: str
    stream: str | None
    layer: int | None
    messages: dict[str, np.ndarray]
    """KEPT, SILENT or FOREIGN by stream, then layer"""
    conditions: dict[str, int]
    """the same by name"""


def probe_pipeline(pipe: Pipeline, grids: Sequence[EvaluationGrid], sigmas: Sequence[float] = SIGMAS) -> Probed:
    """Probes a checkpoint on grids whose truth is known; with their cameras, where it takes them and all grids have some.

    Of a cascade the first stage, which makes the structure. On all devices of the pipeline, a model of fusion `fused` on the
    first one.
    """
    if isinstance(pipe, Cascade):
        boxes = pipe.boxes(0)
        grids = [
            dataclasses.replace(
                grid,
                truth=reduced_frames(grid.truth, boxes),
                cameras=grid.cameras and reduced_cameras(grid.cameras, boxes),
            )
            for grid in grids
        ]
        pipe = pipe.stages[0]
    frames, given = (np.stack([getattr(grid, name) for grid in grids]) for name in ("truth", "given"))
    views, times, *size = frames.shape[1:5]
    shape = pipe.config.codec.shape(times, *size)
    noise = np.stack([cell_noise(index, views, shape[0], shape[1:]) for index in range(len(grids))])
    names = pipe.cameras_taken if all(grid.cameras is not None for grid in grids) else ()
    with_text = any(condition.name == "text" for condition in pipe.config.model.conditions)
    said = [dict.fromkeys(names, grid.cameras) | ({"text": grid.text} if with_text else {}) for grid in grids]
    each = [pipe.told(one, grid.known, grid.given) for one, grid in zip(said, grids, strict=True)]
    told = jax.tree.map(lambda *arrays: np.concatenate(arrays), *each)
    mesh, params = pipe.mesh, pipe.params
    if mesh.size > 1 and pipe.config.grid.fusion == "fused":  # a probe does not reach into what each device does alone
        mesh = make_mesh(MeshConfig(), [mesh.devices.flat[0]])
        params = jax.device_put(params, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        return probe(pipe.denoiser, params, frames, given, noise, told, codec=pipe.config.codec, sigmas=tuple(sigmas))


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
    """Probes a model on some grids, each of which is lent the messages of the one before it, the first those of the last.

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

    Raises UserError for less than two grids, other cells given in one than in another, and a grid without a pixel to score.
    """
    if len(frames) < 2:
        raise UserError("a probe lends a grid the messages of another one: expected two grids or more, found 1")
    if not (given == given[:1]).all():
        raise UserError("a probe lends messages from grid to grid: expected the same given cells in all grids")
    unknown = np.broadcast_to(
        ~given[..., None, None] if where is None else ~given[..., None, None] & where, frames.shape[:5]
    )
    if not unknown.any((1, 2, 3, 4)).all():
        raise UserError("a probe scores unknown pixels: expected some in every grid, found a grid without")
    weights = params, codec.parameters()
    scenes = Scenes(frames, codec.known(given), np.asarray(noise), dict(conditions or {}))
    mesh = jax.sharding.get_mesh()
    whole = None if mesh.empty else NamedSharding(mesh, P())  # every process can read the results
    lend = jax.jit(functools.partial(listen, denoiser, codec), out_shardings=(None, whole))
    ask = jax.jit(functools.partial(answer, denoiser, codec), out_shardings=whole)

    parts = _parts(len(frames))
    lent, _ = jax.eval_shape(lend, *weights, scenes.some(parts[0]), np.float32(1))
    depths = {stream: jax.tree.leaves(message)[0].shape[0] for stream, message in lent.messages.items()}
    changes = _changes(depths, list(lent.conditions), layers)
    rows, means = [], []
    for sigma in sigmas:
        answers, seen = [], []
        for part in parts:
            lent, shows = lend(*weights, scenes.some(part - 1), np.float32(sigma))
            given_to = (*weights, scenes.some(part), lent, np.float32(sigma))
            answers.append([np.asarray(ask(*given_to, one.messages, one.conditions)) for one in changes])
            seen.append(shows)
        for one, found in zip(changes, zip(*answers, strict=True), strict=True):
            each = zip(np.concatenate(found), frames, unknown, strict=False)  # the last part may begin anew
            rows.append(Row(*one[:4], sigma, [min(psnr(*grid), EXACT) for grid in each]))
        means.append(jax.tree.map(lambda *x: np.concatenate(x, axis=-1)[..., : len(frames)].mean(-1).tolist(), *seen))
    two = means[0].gap is not None
    return Probed(
        rows,
        [mean.heads_gap for mean in means] if two else [],
        [mean.gap for mean in means] if two else [],
        {stream: [mean.strength[stream] for mean in means] for stream in means[0].strength},
        tuple(sigmas),
    )


def _parts(count: int) -> list[np.ndarray]:
    """The places of some grids in parts of one size, which one program serves; the last part may begin anew."""
    parts = -(-count // TOGETHER)
    size = -(-count // parts)
    return np.split(np.arange(parts * size) % count, parts)


def _changes(depths: Mapping[str, int], names: Sequence[str], layers: bool) -> list[Change]:
    """What is changed, first of all nothing; `depths`: the layers of every stream that sends messages."""
    nothing = {stream: np.full(depth, KEPT) for stream, depth in depths.items()}
    keep = dict.fromkeys(names, KEPT)
    changes = [Change(MESSAGES, CHANGES[KEPT], None, None, nothing, keep)]
    for number in (SILENT, FOREIGN):
        change, all_of = CHANGES[number], {stream: np.full(depth, number) for stream, depth in depths.items()}
        if depths:
            changes.append(Change(MESSAGES, change, None, None, all_of, keep))
        for stream in depths if len(depths) > 1 else ():
            changes.append(Change(MESSAGES, change, stream, None, nothing | {stream: all_of[stream]}, keep))
        for stream, depth in depths.items() if layers else ():
            for layer in range(depth):
                one = nothing | {stream: np.where(np.arange(depth) == layer, number, KEPT)}
                changes.append(Change(MESSAGES, change, stream, layer, one, keep))
        changes += [Change(name, change, None, None, nothing, keep | {name: number}) for name in names]
    return changes
