"""Lines as SVG, in the colours of the page that shows them."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

PLOT = (460, 250)  # units of an SVG's view box
LEFT, RIGHT, TOP, BOTTOM = 42, 18, 10, 34
COLOURS = 8
RULES = 6  # about as many lines across

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # label -> (x, y)


def line_chart(series: Series, x_label: str, y_label: str) -> str:
    """Lines with a legend below, as SVG. Points that are not finite are left out."""
    series = {
        label: [(x, y) for x, y in zip(*points, strict=True) if np.isfinite(y)] for label, points in series.items()
    }
    points = np.array([point for line in series.values() for point in line])
    (x_low, y_low), (x_high, y_high) = points.min(axis=0), points.max(axis=0)
    step = _rule_distance(y_high - y_low)
    first, last = math.floor(y_low / step - 0.2), math.ceil(y_high / step + 0.2)
    y_low, y_high = first * step, last * step
    width, height = PLOT

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (width - LEFT - RIGHT) * (x - x_low) / max(x_high - x_low, 1e-9)
        return across, height - BOTTOM - (height - BOTTOM - TOP) * (y - y_low) / (y_high - y_low)

    drawn = []
    for y in step * np.arange(first, last + 1):
        down = place(x_low, y)[1]
        drawn.append(f'<path class="rule" d="M{LEFT} {down:.1f}H{width - RIGHT}"/>')
        drawn.append(f'<text class="quiet" x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{y:g}</text>')
    ends = -np.inf
    for x in np.unique(points[:, 0]):
        across = place(x, y_low)[0]
        if across < ends + 36:
            continue  # its label would touch the one before
        ends = across
        drawn.append(
            f'<text class="quiet" x="{across:.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{x:g}</text>'
        )
    drawn.append(f'<text class="quiet" x="{width - RIGHT}" y="{height - 4}" text-anchor="end">{x_label}</text>')
    for index, line in enumerate(series.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        colour = f"var(--s{index % COLOURS})"
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(line) <= 16:
            drawn += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (place(*p) for p in line)
            ]
    for index, label in enumerate(series):
        down = height + 12 + 17 * index
        drawn.append(f'<rect x="{LEFT}" y="{down - 8}" width="14" height="4" fill="var(--s{index % COLOURS})"/>')
        drawn.append(f'<text x="{LEFT + 20}" y="{down - 1}">{html.escape(label)}</text>')
    box = f"0 0 {width} {height + 17 * len(series) + 4}"
    return f'<figcaption>{html.escape(y_label)}</figcaption><svg viewBox="{box}" role="img">{"".join(drawn)}</svg>'


def _rule_distance(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that a span has about as many rules as `RULES`; 1 for no span."""
    if span <= 0:
        return 1.0
    least = span / RULES
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
