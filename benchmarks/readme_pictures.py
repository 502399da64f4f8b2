"""Makes the README's pictures from a checkpoint and its run: docs/nano.webp and docs/nano_training.svg.

python benchmarks/readme_pictures.py --checkpoint nano --metrics fourreal/assets/checkpoints/nano/metrics.jsonl
"""

import argparse
import json
from pathlib import Path

import fourreal
from fourreal.media.sheet import animated_picture
from fourreal.sampling.inputs import read_grid
from fourreal.sampling.results import GridResult, panels
from fourreal.scene import Cameras

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 260, 50, 40
SHOWN = {  # name in metrics.jsonl -> (colour, label)
    "validation/psnr_all": ("#1c7ed6", "all pixels"),
    "validation/psnr_moving": ("#f08c00", "moving pixels"),
    "validation/psnr_copy": ("#868e96", "copy of the freeze-time frame, all pixels"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--grid", default=None)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()

    pipe = fourreal.load_pipeline(options.checkpoint)
    spec = pipe.config
    inputs = read_grid(options.grid, (spec.views, spec.times, *spec.size))
    cameras = Cameras(inputs.K, inputs.c2w) if pipe.cameras_taken else None
    sampled = pipe(inputs.frames, inputs.given, cameras=cameras)
    result = GridResult(inputs.name, sampled, inputs.given, inputs.truth, inputs.K, inputs.c2w)
    animated_picture(options.out / "nano.webp", panels(result), inputs.given)
    (options.out / "nano_training.svg").write_text(curve(options.metrics))


def curve(metrics: Path) -> str:
    """Validation PSNR over steps, as SVG."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "validation/psnr_all" in row]
    steps = [row["step"] for row in rows]
    values = [row[name] for row in rows for name in SHOWN]
    low, high = int(min(values)), int(max(values)) + 1

    def place(step: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 20) * step / steps[-1]
        return across, (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - 20) * (value - low) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for value in range(low, high + 1):
        x, y = place(0, value)
        lines.append(
            f'<path d="M{x} {y:.1f}H{WIDTH - 20}" stroke="#dee2e6"/><text x="{x - 24}" y="{y + 4:.1f}">{value}</text>'
        )
    for step in steps[:: max(1, len(steps) // 6)]:
        lines.append(f'<text x="{place(step, low)[0] - 12:.1f}" y="{HEIGHT - 22}">{step}</text>')
    for number, (name, (colour, label)) in enumerate(SHOWN.items()):
        points = " ".join("{:.1f},{:.1f}".format(*place(row["step"], row[name])) for row in rows)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{LEFT + 10 + 130 * number}" y="{HEIGHT - 6}" fill="{colour}">{label}</text>')
    lines.append('<text x="4" y="14">validation PSNR, dB, 4 sampling steps, over training steps</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    main()
