"""One run of an ablation: it is trained, and what is kept of it is collected."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from fourreal.checkpoints.specs import RUN_WEIGHTS
from fourreal.checkpoints.weights import CONFIG, weights_hash
from fourreal.data.batches import Batches, units_and_scenes
from fourreal.evaluation.ablation.arms import AblationConfig
from fourreal.evaluation.ablation.grid_scores import SCORES, Scorer, reference_scores, score_params, score_test_grids
from fourreal.host.signals import StopSignal
from fourreal.models.build import model_table, split_model
from fourreal.serialize import to_json
from fourreal.training.config import TrainConfig
from fourreal.training.initialize import initial_params
from fourreal.training.log import LOG, read_metrics
from fourreal.training.loop import train
from fourreal.training.prepare import Run, prepare, spec_of
from fourreal.training.run_folder import Start
from fourreal.training.state import split_params
from fourreal.training.storage import Storage


def train_run(
    ablation: AblationConfig, config: TrainConfig, folder: Path, base: Path | None, stop: StopSignal
) -> dict[str, Any]:
    """Trains, or goes on with, one run; what there is to keep of it. `base` None: it is one."""
    used = (folder / CONFIG).is_file()
    start = Start(resume=used, init_from=str(base) if base else None)
    run = prepare(
        config, Storage(folder), start, evaluators=[score_test_grids(config, folder, ablation)] if base else []
    )
    record = describe(config, *(count(run.state[part]) for part in ("params", "frozen")))
    record |= {"test_grids": ablation.test_grids}
    if base:
        record |= {"base": weights_hash(base / RUN_WEIGHTS), "flops_a_step": flops_a_step(run)}
    else:
        record["references"] = reference_scores(config.data, ablation.test_grids)
    train(run, stop)
    record["curve"] = [json.loads(file.read_text()) for file in sorted((folder / SCORES).glob("*.json"))]
    record["validation"] = [
        {name.removeprefix("validation/"): value for name, value in line.items()}
        for line in read_metrics(folder / LOG)
        if "validation/psnr_all" in line
    ]
    return record


def trains_nothing(config: TrainConfig) -> bool:
    """Whether an arm has no parameter to train: it is its base, only evaluated."""
    _, shapes = split_model(config.model, config.grid)
    return not count(split_params(shapes, model_table(config.model, config.grid), config.trains)[0])


def score_untrained(ablation: AblationConfig, config: TrainConfig, base: Path) -> dict[str, Any]:
    """The record of an arm that trains nothing."""
    batch = next(Batches(config.data, config.model.conditions, config.codec).evaluation("test", 1))
    params, _ = initial_params(spec_of(config, batch["frames"]), config.seed, str(base))
    point = score_params(Scorer(config, ablation.test_grids), ablation, params, 0, last=True)
    return describe(config, 0, count(params)) | {
        "test_grids": ablation.test_grids,
        "base": weights_hash(base / RUN_WEIGHTS),
        "flops_a_step": 0,
        "curve": [point],
        "validation": [],
    }


def describe(config: TrainConfig, trained: int, frozen: int) -> dict[str, Any]:
    """What a run is: settings, versions, units, parameters."""
    scenes = config.data.source.open("train")
    units, grids = units_and_scenes(config.data, scenes) if hasattr(scenes, "units") else ([], range(len(scenes)))
    return {
        "settings": to_json(config),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")}
        | {"python": platform.python_version(), "device": jax.devices()[0].device_kind},
        "units": units,
        "grids": len(grids),
        "trained_parameters": trained,
        "frozen_parameters": frozen,
    }


def count(params: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flops_a_step(run: Run) -> int:
    """Matmul FLOPs of one step on grids, forward and backward."""
    return run.steps.program(run.state, run.batch)[1]
