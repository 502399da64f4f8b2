"""What another package adds without touching this one: a condition, a fusion, a sampler, a codec, a source.

All of them train three steps together; the run is saved, resumed, restored by its names alone and sampled.
"""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import fourreal
from fourreal.codecs import Codec
from fourreal.conditions import Condition, Embedded, Hints
from fourreal.data.batches import PipelineConfig
from fourreal.data.source import Source
from fourreal.diffusion.samplers import Sampler
from fourreal.errors import UserError
from fourreal.grid import to_uint8, to_unit
from fourreal.host.signals import StopSignal
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.fusions.two_streams import Streams, TwoStreams
from fourreal.scene import Scene
from fourreal.training.config import TrainConfig, read_run
from fourreal.training.loop import run
from fourreal.training.optimizer import OptimConfig
from fourreal.training.run_folder import Start

VIEWS, TIMES, SIZE = 2, 4, 4


# A condition: one number for a scene, the strength of the wind.


class WindModule(nnx.Module):
    layout = {"direction": P()}  # noqa: RUF012
    group = "conditions"

    def __init__(self, width: int):
        self.direction = nnx.Param(jnp.zeros((6, width)))

    def __call__(self, wind, cells, size) -> Embedded:
        return Embedded(six=wind[:, None, None, None, None] * self.direction[...])


@dataclasses.dataclass(frozen=True)
class Wind(Condition):
    """How strong the wind is."""

    kind = "wind"

    def module(self, base, rngs):
        return WindModule(base.width)

    def example(self, scene, given, rng):
        return np.float32(scene.more["wind"])


# A fusion: two streams that swap their halves after every block.


@dataclasses.dataclass(frozen=True)
class Halves(TwoStreams):
    """Each stream goes on with half of its own tokens' numbers and half of the other's."""

    kind = "halves"

    def synchronize(self, sync, streams: Streams, run) -> Streams:
        own = jnp.arange(streams.time.shape[-1]) % 2 == 0
        view = jnp.where(own, streams.view, run.send(streams.time, "time"))
        return Streams(view, jnp.where(own, streams.time, run.send(streams.view, "view")))


# A sampler of order 2 from two evaluations: Adams and Bashforth's.


class TwoStepState(NamedTuple):
    x: jax.Array
    before: jax.Array


@dataclasses.dataclass(frozen=True)
class TwoStep(Sampler):
    """x' = x + (sigma' - sigma) (3 u - u_before) / 2, the first and the last step Euler's."""

    kind = "two_step"

    def rows(self, levels):
        share = np.full(len(levels) - 1, 0.5, np.float32)
        share[[0, -1]] = 0
        return {"sigma": levels[:-1].astype(np.float32), "after": levels[1:].astype(np.float32), "share": share}

    def init(self, noise):
        return TwoStepState(noise, jnp.zeros_like(noise))

    def step(self, state, x0, row, key=None):
        u = (state.x - x0) / row["sigma"]
        euler = x0 + row["after"] / row["sigma"] * (state.x - x0)
        change = (row["after"] - row["sigma"]) * row["share"] * (u - state.before)
        return TwoStepState(euler + change, u)


# A codec: means of two times.


@dataclasses.dataclass(frozen=True)
class Pairs(Codec):
    """One latent for two frames, their mean; an odd last frame stands alone."""

    kind = "pairs"
    factors = (2, 1, 1)

    def groups(self, times):
        return [range(t, min(t + 2, times)) for t in range(0, times, 2)]

    def encode(self, parameters, frames):
        x = to_unit(frames)
        return jnp.stack([x[:, :, list(group)].mean(2) for group in self.groups(x.shape[2])], axis=2)

    def decode(self, parameters, latents):
        return to_uint8(jnp.repeat(latents, 2, axis=2))


# A source: scenes in memory, some of whose cells were never recorded.


@dataclasses.dataclass(frozen=True)
class Noisy(Source):
    """A few scenes of noise."""

    count: int = 5
    holes: bool = False

    kind = "noisy"

    def open(self, split: str) -> Any:
        return NoisyScenes(self)


class NoisyScenes:
    fingerprint = "noise"

    def __init__(self, source: Noisy):
        self.source, self.partial = source, source.holes

    def __len__(self):
        return self.source.count

    def shape(self, i):
        return 3, 5, SIZE, SIZE

    def read(self, i, cut):
        rng = np.random.default_rng(i)
        frames = rng.integers(0, 256, (3, 5, SIZE, SIZE, 3), np.uint8)
        cells = np.ix_(cut.views, cut.times)
        exists = rng.random((3, 5)) < 0.85 if self.source.holes else None
        return Scene(frames[cells], i, None if exists is None else exists[cells], more={"wind": i / 10})


ADDITIONS = [(WindModule, Wind), (Halves,), (TwoStepState, TwoStep), (Pairs,), (Noisy, NoisyScenes)]


@pytest.mark.parametrize("parts", ADDITIONS, ids=lambda parts: parts[-1].__name__)
def test_no_addition_needs_more_than_forty_lines(parts):
    assert sum(len(inspect.getsource(part).splitlines()) for part in parts) <= 40


CONFIG = TrainConfig(
    name="extended",
    model=VideoDiTConfig(
        width=12,
        depth=1,
        heads=2,
        mlp_width=16,
        patch=(1, 2, 2),
        frequency_width=8,
        conditions=(Hints(), Wind(drop=0.5)),
    ),
    grid=GridDiTConfig("halves"),
    data=PipelineConfig(source=Noisy(holes=True), views=VIEWS, times=TIMES, batch_size=2, max_stride=1),
    codec=Pairs(),
    optim=OptimConfig(lr=0.01, warmup=0),
    steps=3,
    eval_grids=5,
    save_every=2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run with all additions, after two steps and a third that goes on from its checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "extended"
    with pytest.MonkeyPatch.context() as patch:  # the same program for both, unlike a run of two steps
        patch.setattr(StopSignal, "reached", lambda self, steps: steps == 2)
        run(CONFIG, folder)
    run(CONFIG, folder, Start(resume=True))
    return folder


@pytest.fixture(scope="module")
def pipe(trained):
    return fourreal.load_pipeline(trained)


def given_view_0() -> tuple[np.ndarray, np.ndarray]:
    given = np.zeros((VIEWS, TIMES), bool)
    given[0] = True
    frames = np.random.default_rng(0).integers(0, 256, (VIEWS, TIMES, SIZE, SIZE, 3), np.uint8)
    return frames, given


def sample(pipe, wind: float = 1, **options) -> np.ndarray:
    return pipe(*given_view_0(), conditions={"wind": np.float32(wind)}, **{"steps": 3, "method": TwoStep()} | options)


def test_additions_train_are_saved_restored_and_sampled(trained, pipe):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["validation/psnr_all"] for line in lines if "validation/psnr_all" in line]).all()
    assert (pipe.config.model, pipe.config.grid, pipe.config.codec) == (CONFIG.model, CONFIG.grid, CONFIG.codec)
    assert read_run(trained) == CONFIG
    (frames, given), grid = given_view_0(), sample(pipe)
    np.testing.assert_array_equal(grid[given], frames[given])
    assert grid[~given].std() > 0


def test_condition_is_heard(pipe):
    assert (sample(pipe, wind=0) != sample(pipe, wind=30)).any()


def test_sampler_of_two_steps_differs_from_euler_but_not_in_one_step(pipe):
    np.testing.assert_array_equal(sample(pipe, steps=1), sample(pipe, steps=1, method="euler"))
    assert (sample(pipe) != sample(pipe, method="euler")).any()
    np.testing.assert_array_equal(sample(pipe, method="two_step"), sample(pipe))


def test_codec_that_halves_time_takes_masks_of_whole_groups_only(pipe):
    grid = sample(pipe)
    np.testing.assert_array_equal(grid[1, 0::2], grid[1, 1::2])  # two times from one latent
    frames, given = given_view_0()
    given[0, 1] = False
    with pytest.raises(UserError, match="given only in part"):
        pipe(frames, given, conditions={"wind": np.float32(0)})


def test_checkpoint_with_an_unknown_addition_says_in_one_line_what_it_lacks(trained, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in (trained / "weights").iterdir():
        (weights / file.name).write_bytes(file.read_bytes().replace(b'"halves"', b'"thirds"'))
    with pytest.raises(UserError, match=r"there is no fusion 'thirds'.*extensions MODULE"):
        fourreal.load_pipeline(weights)
