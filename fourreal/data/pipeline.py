"""Training and evaluation batches from stored grids, through grain.

Position = step. Example i of the global batch of step s has the global position `p = s * batch_size + i`. Everything
about it depends on the config and p alone: which record it is (each epoch is shuffled by index), which sub-grid is cut
out, which cells are given (random generators keyed by (seed, purpose, p)). So starting at any step costs nothing, a
resumed run sees the data of the run that was not stopped, and process k of n, which makes the k-th n-th of each global
batch, makes the same examples whatever n is.

Clips are for the base model: a batch has one context, drawn per step: `dynamic` (one view at `times` times),
`freeze_time` (one time in `views` views) or `image` (`times` single frames of each record, so that a batch has as many
tokens as a dynamic one). Shapes are fixed for each context.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from einops import rearrange

from fourreal.data.masks import ClipMaskMix, MaskMix, sample_given, sample_given_clip
from fourreal.grid import CONTEXTS, even_cut

MOST = 2**16  # of anything that is counted
Source = Sequence[dict[str, Any]]
Batch = dict[str, Any]

_ORDER, _CONTEXT, _CUT, _MASK, _UNITS, _CAMERAS = range(6)  # purposes of the random generators


@dataclass(frozen=True)
class PipelineConfig:
    """Where the training data comes from and how examples are cut from it."""

    source: str = "data/render64"
    """folder of a rendered data set"""
    kind: Literal["grid", "clip"] = "grid"
    """grids for the two-stream model, clips for the base"""
    views: int = 4
    """views of a grid; frames of a freeze-time clip"""
    times: int = 4
    """times of a grid; frames of a fixed-view clip"""
    batch_size: int = 8
    """stored grids that one step uses, over all processes"""
    seed: int = 0
    """of the order, the cuts, the masks and the choice of units"""
    unit_share: float = 1.0
    """train on the grids of this share of the units, chosen by the seed; validation takes all"""
    masks: MaskMix = field(default_factory=MaskMix)
    """weights of the masks of grids"""
    clip_masks: ClipMaskMix = field(default_factory=ClipMaskMix)
    """weights of the masks of clips"""
    clip_contexts: tuple[float, float, float] = (0.45, 0.45, 0.1)
    """weights of fixed-view, freeze-time and single-image batches, for clips"""
    drop_cameras: float = 0.5
    """probability that an example's cameras are not shown to a model that takes cameras"""
    reverse_views: float = 0.5
    """probability that the order of the views is reversed, cameras with frames"""
    max_stride: int = 2
    """views and times are cut at every stride up to this that fits, equally often"""
    threads: int = 1
    """threads that read and cut"""
    prefetch: int = 4
    """batches held ready"""

    def __post_init__(self):
        for name in ("views", "times", "batch_size", "max_stride", "threads", "prefetch"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"data.{name} is {getattr(self, name)}: give 1 to {MOST}")
        if self.seed < 0:
            raise ValueError(f"data.seed is {self.seed}: give 0 or more")
        if self.kind not in ("grid", "clip"):
            raise ValueError(f"data.kind is {self.kind!r}: give 'grid' or 'clip'")
        for name in ("drop_cameras", "reverse_views"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}: give a probability from 0 to 1")
        if not 0 < self.unit_share <= 1:
            raise ValueError(f"data.unit_share is {self.unit_share}: give a share above 0, at most 1")
        if len(self.clip_contexts) != 3 or min(self.clip_contexts) < 0 or not 0 < sum(self.clip_contexts) < math.inf:
            raise ValueError(f"data.clip_contexts is {self.clip_contexts}: give three weights >= 0, one above 0")


def grid_batches(
    config: PipelineConfig,
    split: str = "train",
    *,
    start_step: int = 0,
    process: int = 0,
    process_count: int = 1,
    source: Source | None = None,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on: this process's part of each global batch.

    Grids: `frames` uint8 [b,v,t,h,w,3], `given` bool [b,v,t], `K` float32 [b,v,3,3], `c2w` float32 [b,v,4,4],
    `cameras_known` bool [b], `index` int64 [b] (of the stored grid). Clips: `frames` uint8 [b,f,h,w,3], `given` bool [b,f],
    `K` and `c2w` with f for v, `cameras_known`, `index` and `context`, one string for the batch; image batches have
    b = batch_size * times and f = 1. `source` replaces the data set on disk: any random-access sequence of example dicts.
    Call `close()` on the iterator to stop its threads early.

    Raises ValueError where the batch does not divide over the processes, the stored grids are too small, or no grid has only
    units of the chosen share.
    """
    import grain

    if config.batch_size % process_count:
        raise ValueError(
            f"data.batch_size {config.batch_size} does not divide over {process_count} processes: give a multiple"
        )
    if not 0 <= process < process_count or start_step < 0:
        raise ValueError(
            f"process {process} of {process_count}, step {start_step}: give 0 <= process < count, step >= 0"
        )
    source = _open(config, split, source)
    if config.unit_share < 1:
        source = _Part(source, units_and_grids(config, split, source)[1])
    order_seed = int(_rng(config, _ORDER, 0).integers(2**32))
    order = grain.MapDataset.source(source).shuffle(order_seed).repeat()
    share = config.batch_size // process_count

    def example(local: int) -> Batch:
        step, place = divmod(local, share)
        position = step * config.batch_size + process * share + place
        return _example(config, order[position], step, position)

    # endless; grain divides the length in floating point, which would round maxsize up
    dataset = grain.MapDataset.range(start_step * share, sys.maxsize // 2).map(example).batch(share, batch_fn=_stack)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
    return iter(dataset.to_iter_dataset(options))


def evaluation_batches(
    config: PipelineConfig, split: str, count: int | None = None, *, source: Source | None = None
) -> Iterator[Batch]:
    """The first `count` grids of a split (None: all), in order, cut and masked without chance.

    Views and times start at 0 with the largest stride that fits. Grids: view 0 and time 0 are given (with one view or
    one time, the first cell). Clips: each batch of grids comes twice, as fixed-view videos of view 0 and as freeze-time
    videos of time 0, the first frame given. Batches are those of `grid_batches`, all cameras known, plus `weight`
    float32 [b]: 1, and 0 for the repeats that fill the last batch.

    Raises ValueError where the split has fewer than `count` grids.
    """
    source = _open(config, split, source)
    count = len(source) if count is None else count
    if not 0 < count <= len(source):
        raise ValueError(f"split '{split}' has {len(source)} grids, not {count}: ask for 1 to {len(source)}")
    stored_views, stored_times = source[0]["frames"].shape[:2]
    views = even_cut(stored_views, config.views)
    times = even_cut(stored_times, config.times)
    for start in range(0, count, config.batch_size):
        places = np.arange(start, start + config.batch_size)
        about = {"weight": (places < count).astype(np.float32), "cameras_known": np.ones(len(places), bool)}
        records = [source[int(place)] for place in np.minimum(places, count - 1)]
        if config.kind == "grid":
            given = _firsts(config.views, config.times)
            yield _stack([_cut(record, views, times) | {"given": given} for record in records]) | about
            continue
        for context, cut in (("dynamic", (views[:1], times)), ("freeze_time", (views, times[:1]))):
            clips = [_clip(record, *cut, context) for record in records]
            yield _stack([clip | {"given": _firsts(1, len(clip["frames"]))[0]} for clip in clips]) | about


def units_and_grids(
    config: PipelineConfig, split: str = "train", source: Source | None = None
) -> tuple[list[str], list[int]]:
    """The units that `unit_share` and the seed choose, and the places of the grids that show no others.

    A smaller share is a part of a larger one. Raises ValueError where no grid is left.
    """
    source = _open(config, split, source)
    shown = [
        {subject["unit"] for subject in json.loads(source[place]["scene"])["subjects"]} for place in range(len(source))
    ]
    units = _rng(config, _UNITS, 0).permutation(sorted(set().union(*shown)))
    chosen = set(units[: math.ceil(config.unit_share * len(units))].tolist())
    places = [place for place, own in enumerate(shown) if own <= chosen]
    if not places:
        raise ValueError(
            f"data.unit_share {config.unit_share} leaves {len(chosen)} of {len(units)} units and no grid: give more"
        )
    return sorted(chosen), places


class _Part(Sequence):
    """The records of a source at some places."""

    def __init__(self, source: Source, places: list[int]):
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.places[index]]


def _open(config: PipelineConfig, split: str, source: Source | None) -> Source:
    """The source, opened where none is given, checked to be large enough."""
    if source is None:
        from fourreal.data.builders.grids import open_split

        source = open_split(config.source, split)
    if not len(source):
        raise ValueError(f"split '{split}' of {config.source} is empty: render more grids")
    views, times = source[0]["frames"].shape[:2]
    if config.views > views or config.times > times:
        raise ValueError(
            f"data.views x data.times is {config.views} x {config.times}, but the grids of {config.source} have "
            f"{views} x {times}: ask for fewer or render larger grids"
        )
    return source


def _rng(config: PipelineConfig, purpose: int, position: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, purpose, position))


def _example(config: PipelineConfig, record: dict, step: int, position: int) -> Batch:
    """One training example: everything random about it comes from (seed, position), its context from (seed, step)."""
    cut_rng, mask_rng = _rng(config, _CUT, position), _rng(config, _MASK, position)
    known = {"cameras_known": _rng(config, _CAMERAS, position).random() >= config.drop_cameras}
    stored_views, stored_times = record["frames"].shape[:2]
    views = _axis(cut_rng, stored_views, config.views, config.max_stride, config.reverse_views)
    times = _axis(cut_rng, stored_times, config.times, config.max_stride)
    if config.kind == "grid":
        given = sample_given(mask_rng, config.views, config.times, config.masks)
        return _cut(record, views, times) | {"given": given} | known
    weights = np.array(config.clip_contexts)
    context = CONTEXTS[_rng(config, _CONTEXT, step).choice(3, p=weights / weights.sum())]
    if context == "image":
        cells = cut_rng.choice(stored_views * stored_times, config.times, replace=False)
        views, times = np.divmod(cells, stored_times)
        # no image is given: a clip of one given frame would have nothing to learn
        return {
            "frames": record["frames"][views, times],
            "given": np.zeros(len(cells), bool),
            "K": record["K"][views],
            "c2w": record["c2w"][views],
            "index": record["index"],
            "context": context,
        } | known
    if context == "dynamic":
        views = [int(cut_rng.integers(stored_views))]
    else:
        times = [int(cut_rng.integers(stored_times))]
    clip = _clip(record, views, times, context)
    return clip | {"given": sample_given_clip(mask_rng, len(clip["frames"]), config.clip_masks)} | known


def _axis(rng: np.random.Generator, stored: int, wanted: int, max_stride: int, reverse: float = 0.0) -> np.ndarray:
    """Positions on one axis: a stride uniform among those that fit, a uniform offset, reversed with a probability."""
    largest = max_stride if wanted == 1 else min(max_stride, (stored - 1) // (wanted - 1))
    stride = int(rng.integers(1, largest, endpoint=True))
    offset = int(rng.integers(stored - stride * (wanted - 1)))
    positions = offset + stride * np.arange(wanted)
    return positions[::-1] if rng.random() < reverse else positions


def _firsts(views: int, times: int) -> np.ndarray:
    """View 0 and time 0 given; where that would be every cell, the first; in a grid of one cell, none. bool [v, t]."""
    given = np.zeros((views, times), bool)
    if min(views, times) > 1:
        given[0, :] = given[:, 0] = True
    elif max(views, times) > 1:
        given[0, 0] = True
    return given


def _cut(record: dict, views: Sequence[int], times: Sequence[int]) -> Batch:
    """The sub-grid of a record with its cameras."""
    views = np.asarray(views)
    return {
        "frames": record["frames"][np.ix_(views, times)],
        "K": record["K"][views],
        "c2w": record["c2w"][views],
        "index": record["index"],
    }


def _clip(record: dict, views: Sequence[int], times: Sequence[int], context: str) -> Batch:
    """The frames of one view or of one time of a record, [f,h,w,3], with the camera of each."""
    cut = _cut(record, views, times)
    frames = rearrange(cut["frames"], "v t h w c -> (v t) h w c")
    cameras = {name: np.repeat(cut[name], len(times), axis=0) for name in ("K", "c2w")}
    return {"frames": frames, **cameras, "index": record["index"], "context": context}


def _stack(examples: Sequence[Batch]) -> Batch:
    """Examples to a batch. The context stays one string; the images of all records become one axis of clips."""
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0] if key != "context"}
    batch["index"] = batch["index"].astype(np.int64)
    if "context" not in examples[0]:
        return batch
    if examples[0]["context"] == "image":
        images = batch["frames"].shape[1]
        batch = {
            name: rearrange(array, "b i ... -> (b i) 1 ...") if array.ndim > 1 else np.repeat(array, images)
            for name, array in batch.items()
        }
    return batch | {"context": examples[0]["context"]}
