"""PSNR of a checkpoint and of the copies on test grids (view 0 and time 0 given), as a Markdown table.

fourreal data render --out data/render64
python benchmarks/quality.py --checkpoint nano
"""

import argparse

import numpy as np

import fourreal
from fourreal.data.pipeline import PipelineConfig, evaluation_batches
from fourreal.evaluation.baselines import BASELINES
from fourreal.evaluation.metrics import psnr_by_motion

COLUMNS = ("all", "moving", "static")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", nargs="+", default=["nano"])
    parser.add_argument("--source", default="data/render64")
    parser.add_argument("--split", default="test")
    parser.add_argument("--grids", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[8])
    options = parser.parse_args()

    methods = dict(BASELINES)
    config = None
    for checkpoint in options.checkpoint:
        pipe = fourreal.load_pipeline(checkpoint)
        config = pipe.config
        for steps in options.steps:
            methods[f"{checkpoint}, {steps} steps"] = lambda frames, given, p=pipe, n=steps: p(frames, given, steps=n)
    data = PipelineConfig(source=options.source, views=config.views, times=config.times, batch_size=1)
    scores = {name: [] for name in methods}
    for batch in evaluation_batches(data, options.split, options.grids):
        truth, given = batch["frames"][0], batch["given"][0]
        for name, method in methods.items():
            known = np.where(given[..., None, None, None], truth, 0)  # a method sees the given cells only
            score = psnr_by_motion(method(known, given), truth, given)
            scores[name].append([score[column] for column in COLUMNS])
    print(f"mean PSNR in dB over the unknown cells of {options.grids} {options.split} grids, view 0 and time 0 given\n")
    print("| | all pixels | moving | static |\n|---|---|---|---|")
    for name, rows in scores.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in np.nanmean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
