"""The plot of an ablation: mean test PSNR over training steps as SVG, a line an arm, and the best reference."""

from typing import NamedTuple

COLOURS = {"soft": "#1c7ed6", "hard": "#e8590c", "none": "#868e96", "sequential": "#2f9e44", "fused": "#9c36b5"}
DASHES = ("", "7 3", "2 3", "9 2 2 2", "4 4", "1 2")
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 820, 340, 44, 270, 44


class Line(NamedTuple):
    """A line of the plot."""

    label: str
    fusion: str
    points: list[tuple[float, float]]
    """(step, dB)"""


def curves(lines: list[Line], reference: tuple[str, float], column: str) -> str:
    """The plot. A line of one point is drawn from end to end."""
    name, level = reference
    end = max((line.points[-1][0] for line in lines), default=1) or 1
    lines = [*lines, Line(name, "", [(0, level)])]
    values = [value for line in lines for _, value in line.points]
    low, high = int(min(values)), int(max(values)) + 1

    def place(step: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * step / end
        return across, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 24) * (value - low) / (high - low)

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="4" y="14">PSNR of test grids in dB, one step from sigma 1, pixels: {column}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 6}">training steps from the base</text>',
    ]
    for value in range(low, high + 1, max(1, (high - low) // 8)):
        x, y = place(0, value)
        drawn.append(
            f'<path d="M{x} {y:.1f}H{WIDTH - RIGHT}" stroke="#dee2e6"/><text x="20" y="{y + 4:.1f}">{value}</text>'
        )
    for part in range(5):
        x, _ = place(end * part / 4, low)
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{end * part / 4:.0f}</text>')
    seen: dict[str, int] = {}
    for number, line in enumerate(lines):
        colour, kinds = COLOURS.get(line.fusion, "#212529"), seen.get(line.fusion, 0)
        seen[line.fusion] = kinds + 1
        dash = DASHES[kinds % len(DASHES)] if line.fusion else "1 4"
        points = line.points if len(line.points) > 1 else [(0, line.points[0][1]), (end, line.points[0][1])]
        path, y = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points), 30 + 18 * number
        for each in (path, f"{WIDTH - RIGHT + 10},{y} {WIDTH - RIGHT + 36},{y}"):
            drawn.append(
                f'<polyline points="{each}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
            )
        drawn.append(f'<text x="{WIDTH - RIGHT + 42}" y="{y + 4}" fill="{colour}">{line.label}</text>')
    return "\n".join([*drawn, "</svg>", ""])
