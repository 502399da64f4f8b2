"""The tables and the plots of an ablation from its arms' files, as Markdown and SVG. NumPy only.

Scores are PSNR of the same test grids in every arm, so arms are compared grid by grid: the mean of the differences to `none`
in the same regime, with a 95 % interval from 10,000 bootstrap draws of the grids. An arm's scores are averaged over its seeds
first. Between two evaluations a curve is read linearly, grid by grid.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fourreal.errors import MissingFile
from fourreal.evaluation.ablation.arms import BASE, REGIMES
from fourreal.evaluation.ablation.curves import Line, curves
from fourreal.evaluation.ablation.files import read_arm
from fourreal.metrics.statistics import mean_difference

VERSIONS = "Python {python}, jax {jax}, flax {flax}, on {device}"
MIXED = " **Not all runs started from the same weights of it**: they were trained on several machines or occasions."
COLUMNS = ("subject", "moving", "all", "static")  # the first that there is counts
FUSIONS = ("none", "sequential", "fused", "hard", "soft")
CONTROL = "none"
ABOVE = 2.0  # dB over the best floor that a run is timed to

Scores = np.ndarray  # one a grid


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs of an arm at one learning rate and one share of the units: one a seed."""

    name: str
    runs: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """The first run's settings; the others differ in their seed."""
        return self.runs[0]["settings"]

    @property
    def regime(self) -> str:
        return self.settings["trains"]

    @property
    def fusion(self) -> str:
        return self.settings["grid"]["fusion"].partition(":")[0]

    @property
    def changes(self) -> str:
        """What it changes beside regime and fusion."""
        return self.name.partition(":")[2]

    @property
    def label(self) -> str:
        """The fusion in words."""
        linear = " + linear" if self.settings["grid"]["matched"] else ""
        return f"{self.fusion}{linear}" + (f", {self.changes}" if self.changes else "")

    @property
    def evaluated(self) -> list[int]:
        """After how many steps it was scored."""
        return [point["step"] for point in self.runs[0]["curve"]]

    @property
    def last(self) -> list[dict[str, Any]]:
        """The last point of every seed."""
        return [run["curve"][-1] for run in self.runs]

    def seeds(self, column: str, key: str = "mean") -> list[Scores]:
        """The last score of every test grid, for every seed."""
        return [np.array(point[key][column], float) for point in self.last]

    def final(self, column: str, key: str = "mean") -> Scores:
        """The same, mean over the seeds."""
        return np.mean(self.seeds(column, key), axis=0)

    def scores(self, step: float, column: str) -> Scores:
        """The score of every test grid after `step` steps, mean over the seeds; nan before the first evaluation."""
        seeds = []
        for run in self.runs:
            steps = [point["step"] for point in run["curve"]]
            values = np.array([point["mean"][column] for point in run["curve"]], float)
            seeds.append([np.interp(step, steps, grid, left=np.nan) for grid in values.T])
        return np.mean(seeds, axis=0)

    def steps_to(self, level: float, column: str) -> int | None:
        """The first evaluation whose mean score reaches a level; None: no one does."""
        return next((step for step in self.evaluated if np.nanmean(self.scores(step, column)) >= level), None)

    def losses(self) -> dict[str, float]:
        """Loss by noise level, mean over the seeds."""
        found = [point["losses"] for point in self.last]
        return {sigma: float(np.mean([losses[sigma] for losses in found])) for sigma in found[0]}

    def worth(self, change: str) -> Scores | None:
        """What the model's messages are worth to every probed grid at the highest noise level: dB lost by the change."""
        lost = []
        for point in self.last:
            rows = [row for row in point.get("probe", {"rows": []})["rows"] if row["what"] == "messages"]
            if not rows:
                return None
            top = max(row["sigma"] for row in rows)
            whole = {r["change"]: r["psnr"] for r in rows if (r["sigma"], r["stream"], r["layer"]) == (top, None, None)}
            if change not in whole:
                return None
            lost.append(np.array(whole["kept"]) - np.array(whole[change]))
        return np.mean(lost, axis=0)


def write_report(files: Path, out: Path) -> Path:
    """Writes `out` and the plots in `files` from the arms' files there. Raises MissingFile where there are none."""
    records = dict(map(read_arm, sorted(files.glob("*.json"))))
    bases = {name: records.pop(name)[0] for name in list(records) if name.partition(":")[0] == BASE}
    if not records or BASE not in bases:
        raise MissingFile(f"{files} holds no arms beside a base: run the ablation first")
    base = bases[BASE]
    parts = [_head(out.stem, list(itertools.chain(*records.values())), bases)]
    shares = sorted({run["settings"]["data"]["unit_share"] for runs in records.values() for run in runs})
    for share in shares:
        arms = [arm for name, runs in records.items() if (arm := best_learning_rate(name, runs, share))]
        arms.sort(key=lambda arm: (REGIMES.index(arm.regime), FUSIONS.index(arm.fusion), len(arm.changes), arm.label))
        if len(shares) > 1:
            parts.append(f"# Grids of {share:.0%} of the units\n")
        for regime in dict.fromkeys(arm.regime for arm in arms):
            plot = files / f"{regime}{'' if share == 1 else f'-units{share:g}'}.svg"
            group = [arm for arm in arms if arm.regime == regime]
            column = primary(group)
            lines = [
                Line(arm.label, arm.fusion, [(s, float(np.nanmean(arm.scores(s, column)))) for s in arm.evaluated])
                for arm in group
            ]
            plot.write_text(curves(lines, _best(base["references"], column), column))
            parts.append(_section(regime, group, base, f"{files.name}/{plot.name}"))
    out.with_suffix(".tmp").write_text("\n".join(parts))
    out.with_suffix(".tmp").replace(out)
    return out


def primary(arms: list[Arm]) -> str:
    """The column that counts: the subject's pixels where the source knows them."""
    return next(name for name in COLUMNS if np.isfinite(np.array(arms[0].last[0]["mean"].get(name, []), float)).any())


def best_learning_rate(name: str, runs: Iterable[dict[str, Any]], share: float) -> Arm | None:
    """The runs of a share at the learning rate with the highest validation PSNR; None where there are none."""
    rates: dict[float, list] = {}
    for run in runs:
        if run["settings"]["data"]["unit_share"] == share:
            rates.setdefault(run["settings"]["optim"]["lr"], []).append(run)
    if not rates:
        return None
    if len(rates) == 1:
        return Arm(name, next(iter(rates.values())))
    best = max(rates.values(), key=lambda found: np.mean([run["validation"][-1]["psnr_all"] for run in found]))
    return Arm(name, best)


def _best(references: dict[str, dict], column: str) -> tuple[str, float]:
    """The reference with the highest mean score."""
    means = {name: float(np.nanmean(np.array(scores[column], float))) for name, scores in references.items()}
    name = max(means, key=means.__getitem__)
    return name, means[name]


def _head(name: str, runs: list[dict[str, Any]], bases: dict[str, dict[str, Any]]) -> str:
    settings, base = runs[0]["settings"], bases[BASE]
    versions = sorted({VERSIONS.format(**run["versions"]) for run in runs})
    data, model, optim = settings["data"], settings["model"], settings["optim"]
    hints = "hints" if "hints" in [condition["kind"] for condition in model["conditions"]] else "no hints"
    source = ", ".join(f"{key} {value}" for key, value in data["source"].items())
    seeds = sorted({run["settings"]["seed"] for run in runs})
    mixed = len({run.get("base") for run in runs}) > len(bases)
    return f"""# {name.replace("_", " ").capitalize()}

Made by `fourreal ablate` from the files in [{name}/]({name}); do not edit. [ablation.md](../ablation.md) says what it is \
about and how to read it.

- **Grids** of {data["views"]} views x {data["times"]} times; source: {source}.
- **Model**: {model["depth"]} layers of width {model["width"]}, patch {model["patch"][1]}, {hints}, {model["prediction"]} \
prediction. Each arm: batch {data["batch_size"]}, {settings["steps"]} steps, {_count(seeds, "seed")} ({_listed(seeds)}), AdamW \
at {optim["lr"]:g}, constant after {optim["warmup"]} steps, an average of the parameters with decay {optim["ema"]}; \
{settings["sigma"]["pure"]:.0%} of the draws at sigma 1.
- **Base**: {base["settings"]["steps"]} steps of {base["settings"]["data"]["batch_size"]} clips; all arms start from it.\
{MIXED if mixed else ""}
- **Scores**: PSNR in dB over the unknown cells of {base["test_grids"]} test grids, view 0 and time 0 given, readout mean, \
sampled in one step from sigma 1 where nothing else is said. *Against none*: the mean difference to `none` in the same regime, \
*over the floor* to the best of the references below, both with a 95 % bootstrap interval over the grids. In brackets: each \
seed by itself. *Foreign messages*: dB that one step from sigma 1 loses when all messages come from another scene. *Loss*: of \
the velocity, on the test grids.
- {"; ".join(versions)}.
"""


def _section(regime: str, arms: list[Arm], base: dict[str, Any], plot: str) -> str:
    column, references = primary(arms), base["references"]
    floor, level = _best(references, column)
    steps_key = [key for key in arms[0].last[0] if key.endswith("steps")]
    names = ["fusion", "trained", "GFLOP a step", column, "against none", "over the floor"]
    names += (["all"] if column != "all" else []) + steps_key
    names += [f"loss {sigma}" for sigma in arms[0].losses()] + [f"steps to floor + {ABOVE:g} dB", "foreign messages"]
    rows = []
    for arm in arms:
        control = next((other for other in arms if other.label == CONTROL and other is not arm), None)
        scores, reached = arm.final(column), arm.steps_to(level + ABOVE, column)
        worth = arm.worth("foreign")
        rows.append(
            [
                arm.label,
                f"{arm.runs[0]['trained_parameters'] / 1e6:.2f} M",
                f"{arm.runs[0]['flops_a_step'] / 1e9:.1f}",
                _mean(scores) + _each([_mean(seed) for seed in arm.seeds(column)]),
                "" if control is None else _difference(scores, control.final(column)),
                _difference(scores, np.array(references[floor][column], float)),
                *([_mean(arm.final("all"))] if column != "all" else []),
                *(_mean(arm.final(column, key)) for key in steps_key),
                *(f"{loss:.3f}" for loss in arm.losses().values()),
                "never" if reached is None else f"{reached}",
                "none are sent" if worth is None else _difference(worth, np.zeros_like(worth)),
            ]
        )
    text = [f"## {regime.replace('_', ' ').capitalize()}: what trains\n", _table(names, rows)]
    known = [
        [name, _mean(np.array(s[column], float)), _mean(np.array(s["all"], float))] for name, s in references.items()
    ]
    text.append(_table(["reference", column, "all"], known))
    two = [arm for arm in arms if "time" in arm.last[0]]
    if two:
        readouts = [[arm.label, *(_mean(arm.final(column, key)) for key in ("mean", "time", "view"))] for arm in two]
        text.append(_table(["readout", "mean of both", "time stream", "view stream"], readouts))
    return "\n".join([*text, f"![{column} over training steps]({plot})\n"])


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(scores: Scores) -> str:
    """The mean over the grids that have such pixels, in dB."""
    finite = scores[np.isfinite(scores)]
    return f"{finite.mean():.2f}" if finite.size else "none"


def _each(values: list[str]) -> str:
    return f" ({', '.join(values)})" if len(values) > 1 else ""


def _difference(ours: Scores, theirs: Scores) -> str:
    mean, low, high = mean_difference(ours, theirs)
    return f"{mean:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else "")


def _count(values: list, word: str) -> str:
    return f"{len(values)} {word}{'s' if len(values) > 1 else ''}"


def _listed(values: list) -> str:
    return ", ".join(f"{value:g}" for value in values)
