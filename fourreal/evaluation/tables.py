"""The tables of an evaluation, as text for the screen and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fourreal.evaluation.scoring import metric_of
from fourreal.evaluation.summary import Part, Row, Value

MARKS = {"better": "+", "worse": "-", "": " "}
LEGEND = (
    "+ and -: better and worse than the best of the two copies on that metric, 95 % interval paired by grid; "
    "gradient: 1 is as sharp as the truth"
)


def text_table(parts: Sequence[Part]) -> str:
    """The parts as aligned text; the deviation over seeds stands below a row that has several."""
    names = list(parts[0].rows[0].values)
    width = max(len(row.label) for part in parts for row in part.rows) + 2
    heads = [metric_of(name).label.split() for name in names]
    lines = []
    for part in parts:
        title = f"mean over {part.grids} grid{'s' * (part.grids > 1)}"
        lines += [
            " " * width + "".join(f"{first:>9}" for first, _ in heads).rstrip(),
            f"{title:<{width}}" + "".join(f"{second:>9}" for _, second in heads).rstrip(),
        ]
        for row in part.rows:
            lines.append(f"{row.label:<{width}}" + "".join(f"{_marked(row, name):>10}"[1:] for name in names).rstrip())
            if row.seeds > 1:
                spread = "".join(f"{deviation(row.values[name], name):>8} " for name in names)
                lines.append(f"{f'  ± over {row.seeds} seeds':<{width}}{spread}".rstrip())
        lines.append("")
    return "\n".join([*lines, LEGEND])


def number(value: Value, name: str) -> str:
    """The mean with the metric's digits, or a dash."""
    return "-" if value.mean is None else f"{value.mean:.{metric_of(name).digits}f}"


def deviation(value: Value, name: str) -> str:
    """The deviation over seeds, with a digit more than the mean."""
    return "-" if value.deviation is None else f"{value.deviation:.{metric_of(name).digits + 1}f}"


def write_json(path: Path, parts: Sequence[Part], about: Mapping[str, object]) -> None:
    """All numbers of the table with their intervals, and `about`."""
    content = {**about, "parts": [asdict(part) for part in parts]}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _marked(row: Row, name: str) -> str:
    value = row.values[name]
    return number(value, name) + MARKS[value.verdict]
