"""Makes the README's picture, docs/nano.webp, of a checkpoint and a test grid.

python benchmarks/readme_pictures.py --checkpoint nano
"""

import argparse
from pathlib import Path

import fourreal
from fourreal.media.sheet import animated_picture
from fourreal.sampling.inputs import read_grid
from fourreal.sampling.results import GridResult, panels
from fourreal.scene import Cameras


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--grid", default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/nano.webp"))
    options = parser.parse_args()

    pipe = fourreal.load_pipeline(options.checkpoint)
    spec = pipe.config
    inputs = read_grid(options.grid, (spec.views, spec.times, *spec.size))
    cameras = Cameras(inputs.K, inputs.c2w) if pipe.cameras_taken else None
    sampled = pipe(inputs.frames, inputs.given, cameras=cameras)
    result = GridResult(inputs.name, sampled, inputs.given, inputs.truth, inputs.K, inputs.c2w)
    animated_picture(options.out, panels(result), inputs.given)


if __name__ == "__main__":
    main()
