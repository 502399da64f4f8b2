"""FVD and KVD: are the clips of a method's grids distributed as the truth's are? By form of clip, over all grids.

    freeze-time   all views of one time      x[:, t]
    fixed-view    all times of one view      x[v, :]
    diagonal      camera and time together   x[i, i]

Only clips with an unknown cell count. Clips are compared by the features of I3D (`metrics/i3d.py`) and two distances of sets
(`metrics/clip_sets.py`). The first row is what real clips are apart: the truth of every second grid against that of the others.
It is of other scenes and half as many clips, while a method has the truth of its own scenes beside it.
"""

import functools
import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, UInt8

from fourreal.evaluation.evaluate import EvaluationGrid, sample, steps_row
from fourreal.metrics.baselines import BASELINES, COPIES
from fourreal.metrics.clip_sets import FEWEST_CLIPS, frechet_distance, kernel_distance
from fourreal.metrics.i3d import I3d
from fourreal.sampling.cascade import Pipeline

REAL = "real against real"
FEATURES = "features.bin"
LEGEND = (
    "FVD and KVD of I3D's features, lower is better: clips of a method against the truth's of the same scenes; "
    "first, what real clips of one half of the scenes and of the other are apart."
)
RECORD = np.dtype([("clip", "S64"), ("feature", "<f4", 400)])  # SHA-256 in hex, what I3D sees

Method = Callable[[EvaluationGrid], np.ndarray]  # its frames of a grid, uint8 [v t h w 3]


@dataclass(frozen=True)
class ClipDistance:
    """Two sets of clips of one form."""

    method: str
    form: str
    clips: int
    """in the smaller set"""
    fvd: float | None
    kvd: float | None


class KeptFeatures:
    """Features of clips by their content, each computed once and kept in a file: a killed evaluation loses none."""

    def __init__(self, path: Path, i3d: I3d):
        self.path, self.i3d = path, i3d
        found = np.fromfile(path, RECORD) if path.is_file() else np.empty(0, RECORD)
        with path.open("ab") as file:
            file.truncate(found.nbytes)  # a kill within a record
        self.known: dict[bytes, np.ndarray] = dict(zip(found["clip"].tolist(), found["feature"], strict=True))

    def __call__(self, clips: UInt8[np.ndarray, "n f h w 3"]) -> Float[np.ndarray, "n 400"]:
        """The features of each clip."""
        keys = [hashlib.sha256(str(clip.shape).encode() + clip.tobytes()).hexdigest().encode() for clip in clips]
        for key, clip in zip(keys, clips, strict=True):
            if key not in self.known:
                self.known[key] = self.i3d(clip[None])[0]
                with self.path.open("ab") as file:
                    file.write(np.array([(key, self.known[key])], RECORD).tobytes())
        return np.stack([self.known[key] for key in keys])


def unknown_clips(
    frames: UInt8[np.ndarray, "v t h w 3"], given: Bool[np.ndarray, "v t"]
) -> dict[str, UInt8[np.ndarray, "n f h w 3"]]:
    """The clips of a grid that have two frames or more and an unknown cell, by form."""
    side = np.arange(min(given.shape))
    found = {
        "freeze-time": rearrange(frames, "v t h w c -> t v h w c")[~given.all(0)],
        "fixed-view": frames[~given.all(1)],
        "diagonal": frames[None, side, side][[not given[side, side].all()]],
    }
    return {form: clips for form, clips in found.items() if clips.shape[0] and clips.shape[1] > 1}


def compared_methods(
    pipes: Mapping[str, Pipeline], steps: int | None, predictions: Mapping[str, Method]
) -> dict[str, Method]:
    """By row: the copies, the samples of every checkpoint with seed 0 and their 1 step, and other systems' predictions."""
    methods: dict[str, Method] = {
        name: lambda grid, copy=BASELINES[name]: copy(grid.known, grid.given) for name in COPIES
    }
    for name, pipe in pipes.items():
        for count in dict.fromkeys((steps, 1)):
            methods[f"{name}, {steps_row(count)}"] = functools.partial(sample, pipe, steps=count)
    return methods | dict(predictions)


def clip_distances(
    methods: Mapping[str, Method],
    grids: Sequence[EvaluationGrid],
    features: Callable[[np.ndarray], np.ndarray],
    done: Callable[[], None] = lambda: None,
) -> list[ClipDistance]:
    """Real against real, then each method (frames of a grid) against the truth; `done` is called after each grid of a set."""

    def seen(method: Method) -> dict[str, list[np.ndarray]]:
        by_form: dict[str, list[np.ndarray]] = {}
        for grid in grids:
            for form, clips in unknown_clips(method(grid), grid.given).items():
                by_form.setdefault(form, []).append(features(clips))
            done()
        return by_form

    truth, scenes = seen(lambda grid: grid.truth), list(range(len(grids)))
    found = [_distance(REAL, form, of[::2], of[1::2], scenes[::2], scenes[1::2]) for form, of in truth.items()]
    for name, method in methods.items():
        found += [_distance(name, form, of, truth[form], scenes, scenes) for form, of in seen(method).items()]
    return found


def _distance(
    method: str,
    form: str,
    x: list[np.ndarray],
    y: list[np.ndarray],
    x_scenes: list[int],
    y_scenes: list[int],
) -> ClipDistance:
    """Of features by scene."""
    if not x or not y:
        return ClipDistance(method, form, 0, None, None)
    scenes = (np.repeat(of, [len(part) for part in parts]) for of, parts in ((x_scenes, x), (y_scenes, y)))
    x, y = np.concatenate(x), np.concatenate(y)
    fvd, kvd = frechet_distance(x, y), kernel_distance(x, y, *scenes)
    return ClipDistance(
        method, form, min(len(x), len(y)), *(round(d, 4) if np.isfinite(d) else None for d in (fvd, kvd))
    )


def fvd_text(found: Sequence[ClipDistance]) -> str:
    """The distances as aligned text."""
    columns, rows = _table(found)
    width = max(map(len, rows)) + 2
    heads = zip(*(column.split() for column in columns), strict=True)
    lines = [" " * width + "".join(f"{word:>12}" for word in words) for words in heads]
    lines += [f"{method:<{width}}" + "".join(f"{text:>12}" for text in texts) for method, texts in rows.items()]
    return "\n".join([*lines, _remark(found)]).rstrip()


def fvd_section(found: Sequence[ClipDistance]) -> str:
    """The distances as a section of the page."""
    columns, rows = _table(found)
    head = "".join(f"<th>{column.replace(' ', '<br>')}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{html.escape(method)}</th>{''.join(f'<td>{text}</td>' for text in texts)}</tr>"
        for method, texts in rows.items()
    )
    table = f'<div class="card"><table class="scores"><tr><th></th>{head}</tr>{body}</table></div>'
    return f"<h2>Sets of clips</h2>\n<p>{LEGEND} {_remark(found)}</p>\n{table}\n"


def _table(found: Sequence[ClipDistance]) -> tuple[list[str], dict[str, list[str]]]:
    """(columns of two words, the numbers of every method)."""
    columns, rows = {}, {}
    for one in found:
        numbers = ["-" if value is None else f"{value:.1f}" for value in (one.fvd, one.kvd)]
        columns |= dict.fromkeys(f"{one.form} {what}" for what in ("clips", "FVD", "KVD"))
        rows.setdefault(one.method, []).extend([str(one.clips), *numbers])
    return list(columns), rows


def _remark(found: Sequence[ClipDistance]) -> str:
    few = min(one.clips for one in found if one.method != REAL) < FEWEST_CLIPS
    return f"Under {FEWEST_CLIPS} clips FVD is mostly bias: read KVD." if few else ""
