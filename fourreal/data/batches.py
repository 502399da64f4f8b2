"""Training and evaluation batches from the scenes of a source, through grain.

Position = step. Example i of the global batch of step s has the global position `p = s * batch_size + i`. Everything
about it depends on the config and p alone: which scene it is (each epoch is shuffled by index), which grid is cut out, which
cells are given, what the conditions show (random generators keyed by (seed, purpose, p)). So starting at any step costs
nothing, a resumed run sees the data of the run that was not stopped, and process k of n, which makes the k-th n-th of each
global batch, makes the same examples whatever n is.

A batch is always a grid: one of a fixed-view video has one view, one of a freeze-time video one time, one of an image one cell.
What is cut is drawn per step, so shapes are fixed for each kind and size of cut; a batch of images has `times` for each scene,
so that it has as many tokens as one of fixed-view videos.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from fourreal.codecs import Codec, PixelCodec
from fourreal.conditions import Condition
from fourreal.data.masks import CutMix, MaskMix, sample_given
from fourreal.data.source import Scenes, Source
from fourreal.data.sources import Records
from fourreal.errors import UserError
from fourreal.grid import even_cut
from fourreal.host.retry import read_again
from fourreal.scene import Cut, Scene, reduced_cameras

MOST = 2**16  # of anything that is counted
BLOCKS = 16  # places of the data set that a window is taken from
Batch = dict[str, Any]

_ORDER, _CUTS, _CUT, _MASK, _UNITS, _CONDITION, _DROP, _SIZE = range(8)  # purposes of the random generators


@dataclass(frozen=True)
class PipelineConfig:
    """Where the training data comes from and how examples are cut from it."""

    source: Source = Records("data/render64")
    """folder of a data set, or another source as NAME:FIELD=VALUE,...; in a config file also as that text"""
    views: int = 4
    """views of a grid, and of a freeze-time video"""
    times: int = 4
    """times of a grid, and of a fixed-view video"""
    sizes: tuple[tuple[int, int], ...] = ()
    """views and times of the grids that are cut for training, one size a step, all equally often; none: `views` x `times`"""
    batch_size: int = 8
    """stored scenes that one step uses, over all processes"""
    seed: int = 0
    """of the order, the cuts, the masks and the choice of units"""
    unit_share: float = 1.0
    """train on the scenes of this share of the units, chosen by the seed; validation takes all"""
    masks: MaskMix = field(default_factory=MaskMix)
    """weights of the masks"""
    cuts: CutMix = field(default_factory=CutMix)
    """weights of what is cut from a scene: whole grids, or the clips that a base takes"""
    reverse_views: float = 0.5
    """probability that the order of the views is reversed, cameras with frames"""
    max_stride: int = 2
    """views and times are cut at every stride up to this that fits, equally often"""
    window: int = 0
    """scenes shuffled among one another, taken from 16 places of the data set, so that reads from a bucket stay within few
    files; 0: all scenes"""
    threads: int = 0
    """threads that read and cut; 0: as many as cores, at most 16"""
    prefetch: int = 4
    """batches held ready"""

    def __post_init__(self):
        if isinstance(self.source, str):
            object.__setattr__(self, "source", Source.from_text(self.source))
        for name in ("views", "times", "batch_size", "max_stride", "prefetch"):
            if not 1 <= getattr(self, name) <= MOST:
                raise UserError(f"data.{name} is {getattr(self, name)}: give 1 to {MOST}")
        for views, times in self.sizes:
            if not (1 <= views <= self.views and 1 <= times <= self.times):
                raise UserError(
                    f"data.sizes has {views} x {times}: give sizes of at most {self.views} x {self.times}, "
                    "data.views x data.times"
                )
        for name in ("seed", "window", "threads"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name} is {getattr(self, name)}: give 0 or more")
        if not 0 <= self.reverse_views <= 1:
            raise UserError(f"data.reverse_views is {self.reverse_views}: give a probability from 0 to 1")
        if not 0 < self.unit_share <= 1:
            raise UserError(f"data.unit_share is {self.unit_share}: give a share above 0, at most 1")


@dataclass(frozen=True)
class Batches:
    """The batches of a config, for a model with such conditions on the latents of such a codec.

    A batch holds `frames` [b v t h w c] (uint8 pixels, or float32 stored latents), `given` bool [b v u] (of the latents),
    `index` int64 [b] (of the scene), `conditions` by name, and, where they may differ from nothing, `exists` bool [b v u],
    `valid` bool [b v u y x], and `dropped`: bool [b] by the name of each condition that is dropped for a share of the examples.
    """

    config: PipelineConfig
    conditions: tuple[Condition, ...] = ()
    codec: Codec = PixelCodec()
    scenes: Scenes | None = None
    """instead of those of the config's source"""

    def train(
        self, split: str = "train", *, start_step: int = 0, process: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Endless batches from `start_step` on: this process's part of each global batch.

        Call `close()` on the iterator to stop its threads early. Raises UserError where the batch does not divide over the
        processes, the stored scenes are too small, or none has only units of the chosen share.
        """
        import grain

        config = self.config
        if config.batch_size % process_count:
            raise UserError(
                f"data.batch_size {config.batch_size} does not divide over {process_count} processes: give a multiple"
            )
        if not 0 <= process < process_count or start_step < 0:
            raise UserError(
                f"process {process} of {process_count}, step {start_step}: give 0 <= process < count, step >= 0"
            )
        scenes = self.open(split)
        places = units_and_scenes(config, scenes)[1] if config.unit_share < 1 else range(len(scenes))
        order = _order(config, places)
        share = config.batch_size // process_count

        def examples(local: int) -> list[Batch]:
            step, place = divmod(local, share)
            position = step * config.batch_size + process * share + place
            return self._examples(scenes, order(position), step, position)

        def stack(parts: Sequence[list[Batch]]) -> Batch:
            return _stack([example for part in parts for example in part])

        # endless; grain divides the length in floating point, which would round maxsize up
        dataset = (
            grain.MapDataset.range(start_step * share, sys.maxsize // 2).map(examples).batch(share, batch_fn=stack)
        )
        threads = config.threads or min(_cores(), 16)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch)
        return iter(dataset.to_iter_dataset(options))

    def evaluation(self, split: str, count: int | None = None, masks: MaskMix | None = None) -> Iterator[Batch]:
        """The first `count` scenes of a split (None: all), in order, cut and masked without chance.

        Views and times start at 0 with the largest stride that fits; view 0 and time 0 are given (with one view or one time,
        the first cell), or what `masks` draw by the scene's place. Where no grids are cut each batch comes twice, as fixed-view
        videos of view 0 and as freeze-time videos of time 0. Nothing is dropped. `weight` float32 [b] is 1, and 0 for the
        repeats that fill the last batch; `subject` bool [b v t h w] are the pixels of the scenes' subjects, where the source
        knows them.

        Raises UserError where the split has fewer than `count` scenes.
        """
        config, scenes = self.config, self.open(split)
        count, merged = len(scenes) if count is None else count, self._merged(scenes)
        if not 0 < count <= len(scenes):
            raise UserError(f"split '{split}' has {len(scenes)} grids, not {count}: ask for 1 to {len(scenes)}")
        stored_views, stored_times = scenes.shape(0)[:2]
        views, times = even_cut(stored_views, config.views), even_cut(stored_times, config.times)
        times = np.arange(config.times) if merged else times
        cuts = [Cut(views, times)] if config.cuts.grid else [Cut(views[:1], times), Cut(views, times[:1])]
        for start in range(0, count, config.batch_size):
            places = np.arange(start, start + config.batch_size)
            weight = (places < count).astype(np.float32)
            for cut in cuts:
                found = [read(scenes, int(place), cut) for place in np.minimum(places, count - 1)]
                examples = []
                for place, scene in zip(places, found, strict=True):
                    recorded, shape = self._recorded(scenes, scene), self._cells(scene)
                    if masks is None:
                        given = _firsts(*shape) & recorded.get("exists", True)
                    else:
                        given = self._given(_rng(config, _MASK, int(place)), shape, masks, recorded)
                    examples.append(self._example(scene, given, recorded, None))
                    if "subject" in scene.more:
                        examples[-1]["subject"] = scene.more["subject"]
                yield _stack(examples) | {"weight": weight}

    def open(self, split: str) -> Scenes:
        """The scenes of a split, checked to be large enough."""
        config = self.config
        scenes = read_again(lambda: config.source.open(split)) if self.scenes is None else self.scenes
        if not len(scenes):
            raise UserError(f"split '{split}' of {config.source.to_text()} is empty: make more scenes")
        stored = getattr(scenes, "codec", None)
        if stored is not None and stored != self.codec.latents():
            raise UserError(
                f"{config.source.to_text()} holds latents of {stored}, and the codec is {self.codec.latents()}: give the codec "
                "that encoded it"
            )
        if config.cuts.image and self._merged(scenes):
            raise UserError(
                f"data.cuts has images, and of the latents of {config.source.to_text()} only those of time 0 are: give "
                "--data.cuts.image 0, or encode with mode=per_cell"
            )
        views, times, *_ = scenes.shape(0)
        if config.views > views or config.times > times:
            raise UserError(
                f"data.views x data.times is {config.views} x {config.times}, but the grids of {config.source.to_text()} "
                f"have {views} x {times}: ask for fewer or render larger grids"
            )
        return scenes

    def _examples(self, scenes: Scenes, place: int, step: int, position: int) -> list[Batch]:
        """The examples of one scene: everything random comes from (seed, position), what is cut from (seed, step)."""
        config = self.config
        rng = _rng(config, _CUT, position)
        stored_views, stored_times, *_ = scenes.shape(place)
        kind = config.cuts.draw(_rng(config, _CUTS, step))
        sizes = config.sizes or ((config.views, config.times),)
        wanted = sizes[int(_rng(config, _SIZE, step).integers(len(sizes)))]
        views = _axis(rng, stored_views, wanted[0], config.max_stride, config.reverse_views)
        times = _axis(rng, stored_times, wanted[1], config.max_stride)
        if merged := self._merged(scenes):
            times = np.arange(wanted[1])
        if kind == "image":
            cells = rng.choice(stored_views * stored_times, wanted[1], replace=False)
            views, times = np.divmod(cells, stored_times)
            every_view, at_view = np.unique(views, return_inverse=True)
            every_time, at_time = np.unique(times, return_inverse=True)
            whole = read(scenes, place, Cut(every_view, every_time))
            found = [take(whole, [v], [t]) for v, t in zip(at_view, at_time, strict=True)]
        else:
            if kind == "fixed_view":
                views = rng.integers(stored_views, size=1)
            if kind == "freeze_time":
                times = np.zeros(1, int) if merged else rng.integers(stored_times, size=1)
            found = [read(scenes, place, Cut(views, times))]
        mask_rng, examples = _rng(config, _MASK, position), []
        for number, scene in enumerate(found):
            recorded, shape = self._recorded(scenes, scene), self._cells(scene)
            # no image is given: a cell that is given has nothing to learn
            given = np.zeros(shape, bool)
            if kind != "image":
                given = self._given(mask_rng, shape, config.masks, recorded)
            examples.append(self._example(scene, given, recorded, (position, number)))
        return examples

    def _cells(self, scene: Scene) -> tuple[int, int]:
        """(views, times) of the latents of a scene, which may be stored latents."""
        views, times = scene.frames.shape[:2]
        return views, len(self.codec.groups(times)) if scene.frames.dtype == np.uint8 else times

    def _given(self, rng: np.random.Generator, shape: tuple[int, int], masks: MaskMix, recorded: Batch) -> np.ndarray:
        """A mask of latents, bool [v u], that the codec can give."""
        return self.codec.givable(sample_given(rng, *shape, masks, recorded.get("exists")))

    def _merged(self, scenes: Scenes) -> bool:
        """Whether the scenes are latents that each depend on those before: then only their first times can be cut."""
        return getattr(scenes, "codec", None) is not None and self.codec.factors[0] > 1

    def _recorded(self, scenes: Scenes, scene: Scene) -> Batch:
        """`exists` and `valid` of a scene's latents where scenes may be partial."""
        if not scenes.partial:
            return {}
        exists = np.ones(scene.frames.shape[:2], bool) if scene.exists is None else scene.exists
        valid = np.ones(scene.frames.shape[:4], bool) if scene.valid is None else scene.valid
        if scene.frames.dtype == np.uint8:
            exists, valid = self.codec.all_of(exists), self.codec.all_of(valid)
        return {"exists": exists, "valid": valid}

    def _example(self, scene: Scene, given: np.ndarray, recorded: Batch, position: tuple[int, int] | None) -> Batch:
        """One example of a scene; `position` None: without chance."""
        example = {"frames": scene.frames, "given": given, "index": np.int64(scene.index), "conditions": {}, **recorded}
        # cameras are in pixels of what the model sees; those of stored latents already are
        if scene.frames.dtype == np.uint8 and scene.cameras is not None:
            scene = scene._replace(cameras=reduced_cameras(scene.cameras, self.codec.factors[1]))
        for condition in self.conditions:
            keys = None if position is None else (*position, *condition.name.encode())
            rng = None if keys is None else _rng(self.config, _CONDITION, *keys)
            value = condition.example(scene, example["given"], rng)
            if value is not None:
                example["conditions"][condition.name] = value
            if condition.drop and keys is not None:
                dropped = _rng(self.config, _DROP, *keys).random() < condition.drop
                example.setdefault("dropped", {})[condition.name] = np.array(dropped)
        return example


def units_and_scenes(config: PipelineConfig, scenes: Scenes) -> tuple[list[str], list[int]]:
    """The units that `unit_share` and the seed choose, and the places of the scenes that show no others.

    A smaller share is a part of a larger one. Raises UserError where no scene is left, or scenes do not name their units.
    """
    if not hasattr(scenes, "units"):
        raise UserError(
            "data.unit_share is below 1, and the source does not say which units its scenes show: leave it out"
        )
    shown = [scenes.units(place) for place in range(len(scenes))]
    units = _rng(config, _UNITS, 0).permutation(sorted(set().union(*shown)))
    chosen = set(units[: math.ceil(config.unit_share * len(units))].tolist())
    places = [place for place, own in enumerate(shown) if own <= chosen]
    if not places:
        raise UserError(
            f"data.unit_share {config.unit_share} leaves {len(chosen)} of {len(units)} units and no grid: give more"
        )
    return sorted(chosen), places


def read(scenes: Scenes, place: int, cut: Cut) -> Scene:
    """The cut of a scene, read again where that fails."""
    return read_again(lambda: scenes.read(place, cut))


def take(scene: Scene, views: Sequence[int], times: Sequence[int]) -> Scene:
    """Some views and times of a scene, in this order."""
    cells = np.ix_(views, times)
    cameras = scene.cameras and scene.cameras._replace(K=scene.cameras.K[views], c2w=scene.cameras.c2w[views])
    return scene._replace(
        frames=scene.frames[cells],
        exists=None if scene.exists is None else scene.exists[cells],
        valid=None if scene.valid is None else scene.valid[cells],
        cameras=cameras,
    )


class _Places(Sequence):
    """Places of a source, as grain takes them."""

    def __init__(self, places: Sequence[int]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> int:
        return self.places[index]


def _order(config: PipelineConfig, places: Sequence[int]) -> Callable[[int], int]:
    """From a position to the place of its scene: every epoch takes each once, in an order of its own."""
    import grain

    if not config.window:
        seed = int(_rng(config, _ORDER, 0).integers(2**32))
        shuffled = grain.MapDataset.source(_Places(places)).shuffle(seed).repeat()
        return lambda position: int(shuffled[position])

    @functools.lru_cache(2)  # threads may be on both sides of an epoch's end
    def epoch(number: int) -> np.ndarray:
        rng, count, block = _rng(config, _ORDER, number, 1), len(places), max(config.window // BLOCKS, 1)
        starts = block * rng.permutation(-(-count // block))
        order = (starts[:, None] + np.arange(block)).ravel()
        return order[order < count][np.argsort(np.arange(count) // config.window + rng.random(count))]

    def place(position: int) -> int:
        number, within = divmod(position, len(places))
        return int(places[epoch(number)[within]])

    return place


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rng(config: PipelineConfig, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, *purpose))


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


def _stack(examples: Sequence[Batch]) -> Batch:
    """Examples to a batch."""
    return jax.tree.map(lambda *parts: np.stack(parts), *examples)
