"""`report.html`: the evaluation as one offline file, with tables, intervals, heat maps over (v, t), curves and pictures.

`html_report.html` beside this file is the template. The page has no script and asks the network for nothing.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from fourreal.checkpoints.specs import weights_folder
from fourreal.evaluation.evaluate import BASELINE, EvaluationGrid, sample
from fourreal.evaluation.fvd import ClipDistance, fvd_section
from fourreal.evaluation.line_chart import Series, line_chart
from fourreal.evaluation.probe import Probed
from fourreal.evaluation.probe_report import probe_section
from fourreal.evaluation.scoring import metric_of
from fourreal.evaluation.summary import Part, Row, Table
from fourreal.evaluation.tables import MARKS, deviation, number
from fourreal.metrics.baselines import BASELINES, COPIES
from fourreal.sampling.cascade import Pipeline
from fourreal.training.log import LOG, read_metrics

TEMPLATE = Path(__file__).with_name("html_report.html")
VALIDATION = ("validation/psnr_all", "validation/psnr_moving")


def write_page(
    path: Path,
    parts: Sequence[Part],
    about: Mapping[str, dict],
    table: Table,
    pipes: Mapping[str, Pipeline],
    grids: Sequence[EvaluationGrid],
    checkpoints: Mapping[str, str],
    probed: Mapping[str, Probed],
    distances: Sequence[ClipDistance],
) -> None:
    """Writes the page. `checkpoints`: what each method was loaded from, for the curve of its training.

    `probed`: what probing the methods found, `distances`: of sets of clips; without them the page has no such section.
    """
    settings = about["settings"]
    mains = [next(row for row in parts[0].rows if row.method == name) for name in pipes]
    copies = [row for row in parts[0].rows if row.method == BASELINE and row.name in COPIES]
    order = _ranking(table, mains[0])
    ends = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    fill = {
        "title": html.escape(f"Evaluation of {', '.join(pipes)}"),
        "facts": _facts(settings, about["seconds"]),
        "tables": "".join(_score_table(part) for part in parts),
        "intervals": "".join(_intervals(part, name) for part in parts for name in ("psnr_all", "psnr_moving")),
        "heat": _heat_maps([*mains, *copies]),
        "curves": "".join(
            f'<div class="card">{curve}</div>' for curve in _curves(parts[0], mains, copies, checkpoints)
        ),
        "fvd": fvd_section(distances) if distances else "",
        "probe": probe_section(probed) if probed else "",
        "ranking": f"The best, the median and the worst grid by PSNR of {html.escape(mains[0].label)}, seed 0.",
        "pictures": "".join(
            _pictures(f"{word}: grid {index}", grids[index], pipes, settings["steps"][0])
            for word, index in ends.items()
        ),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")


def _facts(settings: Mapping, seconds: Mapping[str, float]) -> str:
    weights = ", ".join(f"{name} (weights {digest[:12]})" for name, digest in settings["checkpoints"].items())
    facts = [
        f"{settings['grids']} {settings['split']} grids of {settings['data']}, frames {settings['grids_hash'][:12]}",
        f"given: {settings['given'].replace('_', ' ')}",
        weights,
        f"{settings['generator']}, {seconds['wall_s']:.0f} s, {seconds['cpu_s']:.0f} s of CPU",
    ]
    return "<br>".join(map(html.escape, facts))


def _score_table(part: Part) -> str:
    names = list(part.rows[0].values)
    head = "".join(f"<th>{metric_of(name).label.replace(' ', '<br>')}</th>" for name in names)
    body = "".join(
        f"<tr><th>{html.escape(row.label)}{_seeds(row)}</th>{''.join(_cell(row, name) for name in names)}</tr>"
        for row in part.rows
    )
    title = f"<caption>{part.grids} grid{'s' * (part.grids > 1)}</caption>"
    return f'<div class="card"><table class="scores">{title}<tr><th></th>{head}</tr>{body}</table></div>'


def _seeds(row: Row) -> str:
    return f"<small>± over {row.seeds} seeds</small>" if row.seeds > 1 else ""


def _cell(row: Row, name: str) -> str:
    value = row.values[name]
    hover = ""
    if value.low is not None:
        hover = f' title="{value.difference:+.3f} over the best copy, 95 % from {value.low:+.3f} to {value.high:+.3f}"'
    spread = f"<small>{deviation(value, name)}</small>" if row.seeds > 1 else ""
    mark = MARKS[value.verdict].strip().replace("-", "−")
    return f'<td class="{value.verdict}"{hover}>{number(value, name)}{mark}{spread}</td>'


def _intervals(part: Part, name: str) -> str:
    """The gains over the best copy with their intervals, a line each."""
    rows = [row for row in part.rows if row.values[name].low is not None and row.name != part.best_copy[name]]
    if not rows:
        return ""
    ends = [end for row in rows for end in (row.values[name].low, row.values[name].high)]
    low, high = min(0, *ends), max(0, *ends)
    left, width, line = 260, 560, 24

    def across(value: float) -> float:
        return left + (width - left - 12) * (value - low) / max(high - low, 1e-9)

    drawn = [f'<path class="zero" d="M{across(0):.1f} 0V{line * len(rows)}"/>']
    for index, row in enumerate(rows):
        value, down = row.values[name], line * index + 15
        colour = f"var(--{value.verdict})" if value.verdict else "var(--quiet)"
        span = f"M{across(value.low):.1f} {down - 4}H{across(value.high):.1f}"
        drawn.append(f'<text x="{left - 10}" y="{down}" text-anchor="end">{html.escape(row.label)}</text>')
        drawn.append(f'<path d="{span}" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<circle cx="{across(value.difference):.1f}" cy="{down - 4}" r="4" fill="{colour}"/>')
    bottom = line * len(rows) + 14
    drawn.append(f'<text class="quiet" x="{left}" y="{bottom}">{low:.1f}</text>')
    drawn.append(f'<text class="quiet" x="{width - 12}" y="{bottom}" text-anchor="end">{high:+.1f} dB</text>')
    caption = (
        f"<figcaption>{metric_of(name).label}, {part.grids} grids, against the {part.best_copy[name]}</figcaption>"
    )
    return f'<div class="card">{caption}<svg viewBox="0 0 {width} {bottom + 4}" role="img">{"".join(drawn)}</svg></div>'


def _heat_maps(rows: Sequence[Row]) -> str:
    """PSNR by cell, in one scale for all rows."""
    values = [cell for row in rows for view in row.cells for cell in view if cell is not None]
    low, high = min(values), max(values)

    def cell(value: float | None) -> str:
        if value is None:
            return '<td class="given"></td>'
        share = 75 * (value - low) / max(high - low, 1e-9)
        return f'<td style="background: color-mix(in srgb, var(--heat) {share:.0f}%, var(--card))">{value:.1f}</td>'

    def heat_map(row: Row) -> str:
        times = "".join(f"<th>t{t}</th>" for t in range(len(row.cells[0])))
        body = "".join(f"<tr><th>v{v}</th>{''.join(map(cell, view))}</tr>" for v, view in enumerate(row.cells))
        caption = f"<caption>{html.escape(row.label)}</caption>"
        return f'<div class="card"><table class="heat">{caption}<tr><th></th>{times}</tr>{body}</table></div>'

    return "".join(map(heat_map, rows))


def _curves(part: Part, mains: list[Row], copies: list[Row], checkpoints: Mapping[str, str]) -> list[str]:
    lines = [*mains, *copies]
    charts = [
        line_chart({row.label: _along(row, axis) for row in lines}, word, f"PSNR in dB by {word}")
        for word, axis in (("time", 0), ("view", 1))
        if len(_along(lines[0], axis)[0]) > 1
    ]
    by_steps = {}
    for method in checkpoints:
        found = [(row.name, row.values["psnr_all"].mean) for row in part.rows if row.method == method]
        points = sorted((int(name.split()[0]), mean) for name, mean in found if re.fullmatch(r"\d+ steps?", name))
        if len(points) > 1:
            by_steps[method] = tuple(zip(*points, strict=True))
    if by_steps:
        charts.append(line_chart(by_steps, "denoising steps", "PSNR in dB of all pixels by number of steps"))
    training = {}
    for method, path in checkpoints.items():
        training |= {f"{method}, {name.removeprefix('validation/')}": line for name, line in _validation(path).items()}
    if training:
        charts.append(line_chart(training, "training step", "PSNR in dB on its validation split during training"))
    return charts


def _along(row: Row, axis: int) -> tuple[list[int], list[float]]:
    """PSNR by time (mean over the views, axis 0) or by view (axis 1), where any cell is unknown."""
    cells = np.array(row.cells, dtype=np.float64)
    counts = np.isfinite(cells).sum(axis)
    chosen = np.flatnonzero(counts)
    return chosen.tolist(), (np.nansum(cells, axis)[chosen] / counts[chosen]).tolist()


def _validation(checkpoint: str) -> Series:
    """PSNR over training from the run's metrics.jsonl, beside the weights or in the run's folder; {} without one."""
    folder = weights_folder(checkpoint)
    path = next((path for path in (folder / LOG, folder.parent / LOG) if path.is_file()), None)
    lines = read_metrics(path) if path else []
    found = {}
    for name in VALIDATION:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if len(points) > 1:
            found[name] = tuple(zip(*points, strict=True))
    return found


def _ranking(table: Table, row: Row) -> list[int]:
    """The grids from the worst to the best by PSNR of the row's first seed."""
    scores = [seeds[0]["psnr_all"] for seeds in table[row.method, row.name]]
    return sorted(range(len(scores)), key=lambda index: (scores[index], index))


def _pictures(title: str, grid: EvaluationGrid, pipes: Mapping[str, Pipeline], steps: int | None) -> str:
    shown = {name: sample(pipe, grid, steps) for name, pipe in pipes.items()}
    shown = {"truth": grid.truth, **shown} | {name: BASELINES[name](grid.known, grid.given) for name in COPIES}
    figures = [_figure("given", grid.truth, grid.given), *(_figure(name, frames) for name, frames in shown.items())]
    return f'<div class="card"><figcaption>{title}</figcaption><div class="grids">{"".join(figures)}</div></div>'


def _figure(caption: str, frames: np.ndarray, shown: np.ndarray | None = None) -> str:
    """A grid as one picture, views downwards and times across; cells that are not shown are transparent."""
    opaque = np.full((*frames.shape[:-1], 1), 255, np.uint8)
    if shown is not None:
        opaque *= shown[:, :, None, None, None]
    tiled = rearrange(np.concatenate([frames, opaque], axis=-1), "v t h w c -> (v h) (t w) c")
    file = io.BytesIO()
    Image.fromarray(tiled).save(file, "webp", quality=90)
    source = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    caption = html.escape(caption)
    return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{source}"></figure>'
