"""Evaluation: every checkpoint and every baseline on the same grids, scored grid by grid, resumable.

Rows of a checkpoint: its samples at each step count (the first one over `seeds` seeds), at 1 step, and on the first
`control_grids` grids the mean of `samples` samples, the best of them, the same weights with parts left out (the output of
the time stream alone, of the view stream alone, and streams that never meet), and without the cameras if it takes them.
A network that answers with the mean of all that may be true is told by its 1 step or its mean of samples scoring as
well as its samples. The best of the samples is chosen by PSNR with the truth at hand: what luck could give, not what a
user gets.

The folder `OUT.partial` holds the settings and one line of scores for each method and grid; a killed evaluation goes on
from there. It is renamed to OUT when the report is written.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, UInt8

from fourreal.checkpoints.specs import ModelSpec
from fourreal.conditions.text import Prompt
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.encode import splits_of
from fourreal.data.sources.records import Records
from fourreal.errors import UserError
from fourreal.evaluation.scoring import Score
from fourreal.grid import even_cut
from fourreal.metrics.baselines import BASELINES
from fourreal.metrics.consistency import Surface
from fourreal.metrics.moved_baselines import moved_baselines
from fourreal.metrics.pixels import psnr
from fourreal.models.build import model_table
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.sampling.cascade import Cascade, Pipeline
from fourreal.sampling.inputs import bundled_grids, read_grid
from fourreal.sampling.pipeline import GridPipeline
from fourreal.scene import Cameras, Cut, Scene
from fourreal.serialize import differences, read_json
from fourreal.text.file import captions_of, read_texts
from fourreal.training.state import split_params

BASELINE = ""  # the method of the rows that need no checkpoint; no checkpoint has this name
SETTINGS, SCORES = "settings.json", "scores.jsonl"

PREDICTED = "predictions"  # the row of another system

Rows = dict[str, list[Score]]  # row -> a score for each seed


@dataclass(frozen=True)
class Protocol:
    """What is sampled."""

    steps: tuple[int | None, ...]
    seeds: int
    samples: int
    control_grids: int


@dataclass(frozen=True)
class EvaluationGrid:
    """One grid with its truth, and its cameras where they are known."""

    truth: UInt8[np.ndarray, "v t h w 3"]
    given: Bool[np.ndarray, "v t"]
    cameras: Cameras | None = None
    name: str = ""
    """the bundled grid's, or its number in the data set"""
    surface: Surface | None = None
    """what the truth shows, of a rendered data set"""
    text: Prompt | None = None
    """for a checkpoint that takes text"""

    @property
    def known(self) -> UInt8[np.ndarray, "v t h w 3"]:
        """The given frames; unknown cells are black, so that no method can see them."""
        return np.where(self.given[:, :, None, None, None], self.truth, np.uint8(0))


Scorer = Callable[[np.ndarray, EvaluationGrid], Score]  # of a prediction


def given_cells(kind: str, views: int, times: int) -> Bool[np.ndarray, "v t"]:
    """View 0 and time 0, view 0, views 0, V // 2 and V - 1, time 0, or cell (0, 0). Raises ValueError if nothing is unknown."""
    given = np.zeros((views, times), bool)
    given[0, 0] = True
    if kind in ("view_and_time", "fixed_view"):
        given[0, :] = True
    if kind == "three_views":
        given[[0, views // 2, views - 1], :] = True
    if kind in ("view_and_time", "freeze_time"):
        given[:, 0] = True
    if given.all():
        raise UserError(f"--given {kind} gives all cells of a {views} x {times} grid: nothing is left to sample")
    return given


def read_grids(data: Path | None, split: str, count: int | None, spec: ModelSpec, given: str) -> list[EvaluationGrid]:
    """The first `count` grids of a split (None: all), or of the bundled ones, cut for a checkpoint without chance.

    Frames of a whole multiple of the checkpoint's size are reduced by boxes. Raises ValueError where there are fewer grids,
    and where frames are of another size.
    """
    if data is None:
        shape = (spec.views, spec.times, *spec.size)
        names = [path.stem for path in bundled_grids(shape)]
        if count is not None and not 0 < count <= len(names):
            raise UserError(f"--grids {count}: {len(names)} grids are bundled; render more and name them with --data")
        bundled = [(name, read_grid(name, shape)) for name in names[:count]]
        found = [(one.truth, None if one.c2w is None else Cameras(one.K, one.c2w), name, None) for name, one in bundled]
    else:
        stored = Records(str(data)).open(split).shape(0)
        boxes = stored[2] // spec.size[0] if stored[2] % spec.size[0] == 0 else 1
        cut = PipelineConfig(Records(str(data), max(boxes, 1)), views=spec.views, times=spec.times)
        scenes = Batches(cut).open(split)
        count = len(scenes) if count is None else count
        if not 0 < count <= len(scenes):
            raise UserError(f"split '{split}' has {len(scenes)} grids, not {count}: ask for 1 to {len(scenes)}")
        cells = Cut(even_cut(stored[0], spec.views), even_cut(stored[1], spec.times))
        found = [_read(data, scenes.read(place, cells), str(place)) for place in range(count)]
        size = found[0][0].shape[2:4]
        if size != spec.size:
            raise UserError(f"{data} has frames of {size}, the checkpoint is for {spec.size} pixels")
    mask = given_cells(given, spec.views, spec.times)
    return [EvaluationGrid(truth, mask, *others) for truth, *others in found]


def with_text(
    grids: Sequence[EvaluationGrid], text: Path, captions: Path | None, data: Path | None, split: str
) -> list[EvaluationGrid]:
    """The grids with the features of their captions, or of the empty prompt.

    `captions` has a line for each scene of all splits of `data`, as `encode` takes it, or for each bundled grid. Raises
    UserError for another number of lines, and for one without features.
    """
    texts = read_texts(text)
    if captions is None:
        return [dataclasses.replace(grid, text=Prompt(texts.empty, texts.negative)) for grid in grids]
    lines = captions_of(captions, texts)
    counts = {split: len(grids)}
    if data is not None:
        counts = {each: len(Records(str(data)).open(each)) for each in splits_of(data)}
    if len(lines) != sum(counts.values()):
        raise UserError(f"--captions {captions} has {len(lines)} lines: expected {sum(counts.values())}, {counts}")
    first = sum(counts[each] for each in list(counts)[: list(counts).index(split)])
    features = [texts.features[texts.find(line)] for line in lines[first : first + len(grids)]]
    told = zip(grids, features, strict=True)
    return [dataclasses.replace(grid, text=Prompt(each, texts.negative)) for grid, each in told]


def _read(data: Path, scene: Scene, name: str) -> tuple[np.ndarray, Cameras | None, str, Surface | None]:
    """What a grid has of a scene but the mask."""
    if scene.frames.dtype != np.uint8:
        raise UserError(f"{data} holds latents: pixels are compared, name a data set of frames")
    if scene.cameras is None:
        return scene.frames, None, name, None
    cameras, surface = Cameras(scene.cameras.K, scene.cameras.c2w), None
    if {"depth", "subject"} <= scene.more.keys():
        surface = Surface(scene.more["depth"].astype(np.float64), scene.more["subject"].astype(bool), *cameras[:2])
    return scene.frames, cameras, name, surface


def grids_hash(grids: Sequence[EvaluationGrid]) -> str:
    """SHA-256 of all frames, masks and texts, in hex."""
    digest = hashlib.sha256()
    for grid in grids:
        digest.update(grid.truth.tobytes() + grid.given.tobytes())
        for features in grid.text or ():
            digest.update(np.asarray(features).tobytes())
    return digest.hexdigest()


def sample(
    pipe: Pipeline, grid: EvaluationGrid, steps: int | None, seed: int = 0, *, untold: str = ""
) -> UInt8[np.ndarray, "v t h w 3"]:
    """The one place where a checkpoint is asked for a grid: told the cameras, if it takes them, and all but `untold`."""
    cameras = grid.cameras if pipe.cameras_taken and untold != "cameras" else None
    text = grid.text if any(condition.name == "text" for condition in pipe.conditions) else None
    names = {"": (), "cameras": pipe.cameras_taken}.get(untold, (untold,))
    return pipe(grid.known, grid.given, cameras=cameras, text=text, steps=steps, seed=seed, untold=names)


def with_parts_left_out(pipe: Pipeline) -> dict[str, Pipeline]:
    """The same weights as other models, of a cascade in its first stage: one stream's output, and streams that never meet.

    Only models of two streams have the first; after hard fusion both streams are one, so there the output is the same.
    """
    if isinstance(pipe, Cascade):
        first, *others = pipe.stages
        return {name: Cascade((variant, *others)) for name, variant in with_parts_left_out(first).items()}
    spec, variants = pipe.config, {}
    kind = spec.grid.make_fusion().kind
    if kind in ("soft", "none"):  # after a hard sync both streams are one
        for stream in ("time", "view"):
            config = dataclasses.replace(spec.grid, readout=stream)
            variants[f"{stream} stream only"] = (config, pipe.params)
    if kind != "none":
        _, base = split_params(pipe.params, model_table(spec.model, spec.grid), "sync")
        variants["streams never meet"] = (GridDiTConfig(fusion="none"), base)
    return {
        name: GridPipeline(dataclasses.replace(spec, grid=config), params, mesh=pipe.mesh, coder=pipe.coder)
        for name, (config, params) in variants.items()
    }


def baseline_rows(grid: EvaluationGrid, score: Scorer) -> Rows:
    """The scores of every baseline on one grid."""
    made = {name: make(grid.known, grid.given) for name, make in BASELINES.items()}
    made |= moved_baselines(grid.known, grid.given)
    return {name: [score(frames, grid)] for name, frames in made.items()}


def checkpoint_rows(
    pipe: Pipeline,
    variants: Mapping[str, Pipeline],
    grid: EvaluationGrid,
    scorer: Scorer,
    protocol: Protocol,
    control: bool,
) -> Rows:
    """The scores of a checkpoint's rows on one grid; `control`: also those that take most of the time."""

    def score(prediction: np.ndarray) -> Score:
        return scorer(prediction, grid)

    main, *others = protocol.steps
    samples = [sample(pipe, grid, main, seed) for seed in range(protocol.samples if control else protocol.seeds)]
    rows = {steps_row(main): [score(one) for one in samples[: protocol.seeds]]}
    for steps in dict.fromkeys([*others, 1]):
        if steps != main:
            rows[steps_row(steps)] = [score(sample(pipe, grid, steps))]
    if control:
        unknown = ~grid.given[:, :, None, None]
        mean = np.round(np.mean(samples, axis=0)).astype(np.uint8)
        best = max(samples, key=lambda one: psnr(one, grid.truth, unknown))
        rows[f"mean of {len(samples)} samples"] = [score(mean)]
        rows[f"best of {len(samples)} samples"] = [score(best)]
        rows |= {name: [score(sample(variant, grid, main))] for name, variant in variants.items()}
        told = {"cameras": pipe.cameras_taken and grid.cameras is not None}
        told["hints"] = any(condition.name == "hints" for condition in pipe.conditions)
        for name in filter(told.get, told):
            rows[f"{steps_row(main)}, {name} unknown"] = [score(sample(pipe, grid, main, untold=name))]
    return rows


def steps_row(steps: int | None) -> str:
    """The name of the row of samples at a number of steps; None: as many as the checkpoint names."""
    return "own steps" if steps is None else f"{steps} step{'s' * (steps > 1)}"


def evaluate(
    pipes: Mapping[str, Pipeline],
    grids: Sequence[EvaluationGrid],
    scorer: Scorer,
    protocol: Protocol,
    folder: Path,
    done: Callable[[], None] = lambda: None,
    predictions: Mapping[str, Callable[[EvaluationGrid], np.ndarray]] = MappingProxyType({}),
) -> dict[tuple[str, str], list[list[Score]]]:
    """Scores by (method, row), of every grid and seed. Goes on from the lines in `folder`, `done` is called after each.

    A row has fewer grids than there are only if it is one of the controls: then it has the first ones.
    """
    variants = {name: with_parts_left_out(pipe) for name, pipe in pipes.items()}

    def work(method: str, index: int) -> Rows:
        if method == BASELINE:
            return baseline_rows(grids[index], scorer)
        if method in predictions:
            return {PREDICTED: [scorer(predictions[method](grids[index]), grids[index])]}
        control = index < protocol.control_grids
        return checkpoint_rows(pipes[method], variants[method], grids[index], scorer, protocol, control)

    finished = read_scores(folder)
    tasks = [(method, index) for method in (BASELINE, *pipes, *predictions) for index in range(len(grids))]
    for _ in finished:
        done()
    todo = [task for task in tasks if task not in finished]
    # While one thread compiles or scores, the other samples; programs of several devices could wait for each other.
    threads = ThreadPoolExecutor(2 if all(pipe.mesh.size == 1 for pipe in pipes.values()) else 1)
    with threads, (folder / SCORES).open("a", encoding="utf-8") as file:
        for task, rows in zip(todo, threads.map(lambda task: work(*task), todo), strict=True):
            finished[task] = rows
            file.write(json.dumps({"method": task[0], "grid": task[1], "rows": rows}, allow_nan=False) + "\n")
            file.flush()
            done()
    table = {}
    for method, index in tasks:
        for row, scores in finished[method, index].items():
            table.setdefault((method, row), []).append(scores)
    return table


def open_folder(folder: Path, settings: dict) -> None:
    """Makes the folder of an evaluation with its settings, or checks that the one there was begun with the same.

    Raises ValueError naming the settings that differ.
    """
    path = folder / SETTINGS
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        return
    changed = differences(settings, read_json(path))
    if changed:
        listed = ", ".join(f"{name} {theirs} (now {ours})" for name, (ours, theirs) in changed.items())
        raise UserError(
            f"{folder} holds an unfinished evaluation with other settings: {listed}; "
            "go on with those, remove that folder, or choose another --out"
        )


def read_scores(folder: Path) -> dict[tuple[str, int], Rows]:
    """The lines of an unfinished evaluation by (method, grid); a last line that a kill has cut off is dropped."""
    path = folder / SCORES
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(whole, encoding="utf-8")
        temporary.replace(path)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        return {(line["method"], line["grid"]): line["rows"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken ({error}): remove {folder} to begin anew") from error
