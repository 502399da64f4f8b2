"""The tables and the plot of an ablation from its arms' files, as Markdown and SVG. NumPy only.

Scores are PSNR of the same test grids in every arm, so arms are compared grid by grid: the mean of the differences to soft in
the same regime, with a 95 % interval from 10,000 bootstrap draws of the grids. An arm's scores are averaged over its seeds
first. Between two evaluations a curve is read linearly, grid by grid.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fourreal.errors import MissingFile
from fourreal.evaluation.ablation.files import read_arm
from fourreal.metrics.statistics import mean_difference

VERSIONS = "Python {python}, jax {jax}, flax {flax}, on {device}"
MIXED = " **Not all runs started from the same weights of it**: they were trained on several machines or occasions."
COLUMNS = ("all", "moving", "static")
REGIMES = ("all", "attention", "sync")
FUSIONS = ("soft", "hard", "none", "sequential", "fused")
COLOURS = dict(zip(FUSIONS, ("#1c7ed6", "#e8590c", "#868e96", "#2f9e44", "#9c36b5"), strict=True))
DASHES = {"all": "", "attention": "7 3", "sync": "2 3"}
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 760, 340, 44, 190, 44


@dataclasses.dataclass(frozen=True)
class Arm:
    """The runs of an arm at one learning rate and one share of the units: one a seed."""

    runs: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """The first run's settings; the others differ in their seed."""
        return self.runs[0]["settings"]

    @property
    def regime(self) -> str:
        return self.settings["trains"].removesuffix("_and_conditions")

    @property
    def fusion(self) -> str:
        return self.settings["grid"]["fusion"]

    @property
    def label(self) -> str:
        """The fusion in words."""
        return self.fusion + (" + linear" if self.settings["grid"]["matched"] else "")

    @property
    def flops_a_step(self) -> int:
        return self.runs[0]["flops_a_step"]

    @property
    def evaluated(self) -> list[int]:
        """After how many steps it was scored."""
        return [point["step"] for point in self.runs[0]["curve"]]

    def scores(self, step: float, column: str, readout: str = "mean") -> np.ndarray:
        """The score of every test grid after `step` steps, mean over the seeds; nan before the first evaluation."""
        seeds = []
        for run in self.runs:
            points = [point for point in run["curve"] if readout in point]
            steps = [point["step"] for point in points]
            values = np.array([point[readout][column] for point in points], float)
            seeds.append([np.interp(step, steps, grid, left=np.nan) for grid in values.T])
        return np.mean(seeds, axis=0)

    def loss(self) -> float:
        """The last validation's loss, mean over the noise levels and the seeds."""
        levels = [
            [value for name, value in run["validation"][-1].items() if name.startswith("loss")] for run in self.runs
        ]
        return float(np.mean(levels))


def write_report(files: Path, out: Path) -> Path:
    """Writes `out` and the plots in `files` from the arms' files there. Raises FileNotFoundError where there are none."""
    records = {file.stem: read_arm(file) for file in sorted(files.glob("*.json"))}
    base = records.pop("base", None)
    if not records or not base:
        raise MissingFile(f"{files} holds no arms beside a base: run the ablation first")
    parts = [_head(list(itertools.chain(*records.values())), base[0])]
    shares = sorted({run["settings"]["data"]["unit_share"] for runs in records.values() for run in runs})
    for share in shares:
        arms = sorted(
            (arm for runs in records.values() if (arm := best_learning_rate(runs, share))),
            key=lambda arm: (REGIMES.index(arm.regime), FUSIONS.index(arm.fusion), arm.label),
        )
        plot = files / f"units{share:g}.svg"
        plot.write_text(curves(arms, base[0]["copies"]))
        parts.append(_section(arms, base[0], f"{plot.parent.name}/{plot.name}"))
    out.with_suffix(".tmp").write_text("\n".join(parts))
    out.with_suffix(".tmp").replace(out)
    return out


def best_learning_rate(runs: Iterable[dict[str, Any]], share: float) -> Arm | None:
    """The runs of a share at the learning rate with the highest validation PSNR; None where there are none."""
    rates: dict[float, list] = {}
    for run in runs:
        if run["settings"]["data"]["unit_share"] == share:
            rates.setdefault(run["settings"]["optim"]["lr"], []).append(run)
    if not rates:
        return None
    return Arm(max(rates.values(), key=lambda found: np.mean([run["validation"][-1]["psnr_all"] for run in found])))


def equal_flops_steps(arms: list[Arm]) -> list[float]:
    """The steps after which each arm has cost what the cheapest whole run costs."""
    budget = min(arm.evaluated[-1] * arm.flops_a_step for arm in arms)
    return [budget / arm.flops_a_step for arm in arms]


def _head(runs: list[dict[str, Any]], base: dict[str, Any]) -> str:
    settings = runs[0]["settings"]
    versions = sorted({VERSIONS.format(**run["versions"]) for run in runs})
    told = [condition["kind"] for condition in settings["model"].get("conditions", ())]  # before, a setting of its own
    hints = "hints" if "hints" in told or settings["model"].get("hints") else "no hints"
    bases = {run.get("base") for run in runs}
    data, model = settings["data"], settings["model"]
    seeds = sorted({run["settings"]["seed"] for run in runs})
    rates = sorted({run["settings"]["optim"]["lr"] for run in runs})
    preliminary = len(seeds) < 3 or len(rates) < 2
    return f"""# Which fusion, trained how?

Made by `fourreal ablate configs/ablation.py` from the files in [ablation/](ablation); do not edit.
{"**Preliminary**: " if preliminary else ""}{_count(seeds, "seed")} ({_listed(seeds)}), \
{_count(rates, "learning rate")} ({_listed(rates)}), a toy scale.\
{" Read the order of the arms as a hint, not as a result." if preliminary else ""}

- **Arms.** The regime says what trains: `all`, `attention` (the self-attention and what `sync` trains) or `sync` (the sync \
layers and what conditions the base). Fusions are those of the README. `none` is two streams that never meet: its mean of \
two heads is the floor that an ensemble alone gives. `+ linear` is the control with soft's parameters: after every block a \
linear map of its input and output, modulated as the sync layers are and zero at first (`fused`, which has one block a layer \
where `sequential` has two, adds both halves of the map there).
- **Model.** {model["depth"]} layers of width {model["width"]}, patch {model["patch"][1]}, {hints}. Grids of \
{data["views"]} views x {data["times"]} times. Each arm: batch {data["batch_size"]}, {settings["steps"]} steps, AdamW, \
the learning rate constant after {settings["optim"]["warmup"]} steps, an average of the parameters with decay \
{settings["optim"]["ema"]}. With no decay of the learning rate every point of a curve is what a run of that length would \
leave, so equal FLOPs can be read off it; a decay would lift all arms.
- **Base.** All arms start from one, trained for {base["settings"]["steps"]} steps of {base["settings"]["data"]["batch_size"]} \
clips (fixed-view, freeze-time, single images) of all {len(base["units"])} units. Its cost is the same for all and in no table.\
{"" if len(bases) == 1 else MIXED}
- **Pairs.** Order, cuts, masks and noise depend on the seed and the step alone, so all arms see the same; the noise of a \
test grid depends on the grid.
- **Scores.** PSNR in dB over the unknown cells of {base["test_grids"]} test grids (units that no training saw), view 0 and \
time 0 given, 4 sampling steps, readout mean, which is what the loss trained. *Against soft*: the mean difference to soft in \
the same regime, with a 95 % bootstrap interval over the grids. The interval knows nothing of other training seeds, and the \
grids share their few units. *Loss*: on validation grids, mean over sigma 0.1, 0.3, 0.5, 0.7, 0.9.
- **FLOPs** are those of the matmuls of forward and backward, counted on the step as it is traced.
- {"; ".join(versions)}.
"""


def _section(arms: list[Arm], base: dict[str, Any], plot: str) -> str:
    run = arms[0].runs[0]
    share = run["settings"]["data"]["unit_share"]
    steps = min(arm.evaluated[-1] for arm in arms)
    equal = equal_flops_steps(arms)
    budget = equal[0] * arms[0].flops_a_step
    return f"""## Grids of {share:.0%} of the units

With seed {run["settings"]["seed"]}: {len(run["units"])} units, {run["grids"]} grids.

### Equal steps: {steps}

{_comparison(arms, [steps] * len(arms), base["copies"])}
### Equal FLOPs: {budget / 1e12:.1f} TFLOP, those of the cheapest arm

{_comparison(arms, equal, None)}
### Readouts after {steps} steps

{_readouts([arm for arm in arms if "time" in arm.runs[0]["curve"][-1]], steps)}
![Test PSNR over training FLOPs]({plot})
"""


def _comparison(arms: list[Arm], steps: list[float], copies: dict[str, dict] | None) -> str:
    """One row an arm; with the copies, the table of equal steps, which also has parameters and losses."""
    whole = copies is not None
    names = ["regime", "fusion"] + (["trained", "GFLOP a step", "loss"] if whole else ["steps"])
    names += [name for column in COLUMNS for name in (column, "against soft")][:-1]
    rows = []
    for place, arm in enumerate(arms):
        soft = next(
            (other for other, a in enumerate(arms) if a.regime == arm.regime and a.label == "soft" and a is not arm),
            None,
        )
        row = [arm.regime, arm.label]
        if whole:
            row += [
                f"{arm.runs[0]['trained_parameters'] / 1e6:.2f} M",
                f"{arm.flops_a_step / 1e9:.1f}",
                f"{arm.loss():.3f}",
            ]
        else:
            row += [f"{steps[place]:.0f}"]
        for column in COLUMNS:
            scores = arm.scores(steps[place], column)
            row.append(_mean(scores))
            if column != "static":
                row.append("" if soft is None else _difference(scores, arms[soft].scores(steps[soft], column)))
        rows.append(row)
    for name, scores in (copies or {}).items():
        means = [_mean(np.array(scores[column], float)) for column in COLUMNS]
        rows.append([name, "", "", "", "", means[0], "", means[1], "", means[2]])
    return _table(names, rows)


def _readouts(arms: list[Arm], steps: int) -> str:
    readouts = ("mean", "time", "view")
    names = ["regime", "fusion", *(f"{column}, {readout}" for column in COLUMNS[:2] for readout in readouts)]
    return _table(
        names,
        [
            [arm.regime, arm.label]
            + [_mean(arm.scores(steps, column, readout)) for column in COLUMNS[:2] for readout in readouts]
            for arm in arms
        ],
    )


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(scores: np.ndarray) -> str:
    """The mean over the grids that have such pixels, in dB."""
    finite = scores[np.isfinite(scores)]
    return f"{finite.mean():.2f}" if finite.size else "none"


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    mean, low, high = mean_difference(ours, theirs)
    return f"{mean:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else "")


def _count(values: list, word: str) -> str:
    return f"{len(values)} {word}{'s' if len(values) > 1 else ''}"


def _listed(values: list) -> str:
    return ", ".join(f"{value:g}" for value in values)


def curves(arms: list[Arm], copies: dict[str, dict]) -> str:
    """Mean test PSNR over all pixels against training FLOPs as SVG: a line an arm, and the best copy."""
    lines = [
        [(step * arm.flops_a_step / 1e12, np.nanmean(arm.scores(step, "all"))) for step in arm.evaluated]
        for arm in arms
    ]
    copy = max(np.nanmean(np.array(scores["all"], float)) for scores in copies.values())
    values = [value for line in lines for _, value in line] + [copy]
    low, high, end = int(min(values)), int(max(values)) + 1, max(line[-1][0] for line in lines)

    def place(flops: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * flops / end
        return across, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 24) * (value - low) / (high - low)

    def stroke(points: str, colour: str, dash: str) -> str:
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        '<text x="4" y="14">test PSNR over all pixels, dB</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 6}">TFLOP of training, without the base</text>',
    ]
    for value in range(low, high + 1):
        x, y = place(0, value)
        drawn.append(
            f'<path d="M{x} {y:.1f}H{WIDTH - RIGHT}" stroke="#dee2e6"/><text x="20" y="{y + 4:.1f}">{value}</text>'
        )
    for part in range(5):
        x, _ = place(end * part / 4, low)
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{end * part / 4:.0f}</text>')
    legend = [(arm.regime + " " + arm.label, COLOURS[arm.fusion], DASHES[arm.regime]) for arm in arms]
    legend.append(("the best copy", "#212529", "1 4"))
    lines.append([(0, copy), (end, copy)])
    for number, ((name, colour, dash), line) in enumerate(zip(legend, lines, strict=True)):
        y = 30 + 18 * number
        drawn.append(stroke(" ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line), colour, dash))
        drawn.append(stroke(f"{WIDTH - RIGHT + 10},{y} {WIDTH - RIGHT + 36},{y}", colour, dash))
        drawn.append(f'<text x="{WIDTH - RIGHT + 42}" y="{y + 4}" fill="{colour}">{name}</text>')
    return "\n".join([*drawn, "</svg>", ""])
