"""One run of an ablation: it is trained, and what is kept of it is collected."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from fourreal.checkpoints.specs import RUN_WEIGHTS
from fourreal.checkpoints.weights import CONFIG, weights_hash
from fourreal.data.batches import units_and_scenes
from fourreal.evaluation.ablation.grid_scores import SCORES, copy_scores, score_test_grids
from fourreal.host.signals import StopSignal
from fourreal.serialize import to_json
from fourreal.training.config import TrainConfig
from fourreal.training.log import LOG, read_metrics
from fourreal.training.loop import train
from fourreal.training.prepare import Run, prepare
from fourreal.training.run_folder import Start


def train_run(
    config: TrainConfig, folder: Path, base: Path | None, test_grids: int, stop: StopSignal
) -> dict[str, Any]:
    """Trains, or goes on with, one run; what there is to keep of it."""
    used = (folder / CONFIG).is_file()
    start = Start(resume=used, init_from=str(base) if base else None)
    run = prepare(config, folder, start, evaluators=[score_test_grids(config, folder, test_grids)] if base else [])
    record = describe(run) | {"test_grids": test_grids}
    if base:
        record |= {"base": weights_hash(base / RUN_WEIGHTS), "flops_a_step": flops_a_step(run)}
    else:
        record["copies"] = copy_scores(config.data, test_grids)
    train(run, stop)
    record["curve"] = [json.loads(file.read_text()) for file in sorted((folder / SCORES).glob("*.json"))]
    record["validation"] = [
        {name.removeprefix("validation/"): value for name, value in line.items()}
        for line in read_metrics(folder / LOG)
        if "validation/psnr_all" in line
    ]
    return record


def describe(run: Run) -> dict[str, Any]:
    """What a run is: settings, versions, units, parameters."""
    data = run.config.data
    scenes = data.source.open("train")
    units, grids = units_and_scenes(data, scenes) if hasattr(scenes, "units") else ([], range(len(scenes)))
    return {
        "settings": to_json(run.config),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")}
        | {"python": platform.python_version(), "device": jax.devices()[0].device_kind},
        "units": units,
        "grids": len(grids),
        "trained_parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state["params"])),
        "frozen_parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state["frozen"])),
    }


def flops_a_step(run: Run) -> int:
    """Matmul FLOPs of one step on grids, forward and backward."""
    return run.steps.program(run.state, run.batch)[1]
