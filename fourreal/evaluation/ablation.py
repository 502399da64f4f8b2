"""The verb `ablate`: trains arms that differ in one thing on the same data and noise, and keeps what each scores.

    fourreal ablate configs/ablation.py                                   the base, then every arm, then the report
    fourreal ablate configs/ablation.py --arms all-soft sync-soft         a part; finished runs are skipped, broken ones go on
    fourreal ablate configs/ablation.py --report                          only docs/ablation.md, from the files beside it

An arm is a regime (what trains), a fusion and, for the one-stream fusions, `linear`: the control with soft's parameters. Each
arm is trained once for every seed, learning rate and share of the units, through `training/loop.py`, in a run's folder of its
own. All start from one base, trained on clips of all units. A run's examples, masks and noise depend on its seed and the step
alone, so equal steps of two arms are paired; so are the sampled test grids, whose noise depends on the grid.

The learning rate is constant after its warm-up: then the average of the parameters after n steps is what a run of n
steps would leave, and the curve can be read at any number of FLOPs.
"""

import dataclasses
import difflib
import functools
import json
import math
import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from fourreal.cli import read_options
from fourreal.config import TrainConfig, load_config
from fourreal.data.pipeline import PipelineConfig, evaluation_batches, units_and_grids
from fourreal.destination import check_creatable
from fourreal.diffusion.samplers import cell_noise, noise_levels, sample_grid
from fourreal.evaluation.ablation_report import read_arm, write_report
from fourreal.evaluation.baselines import BASELINES
from fourreal.evaluation.metrics import psnr_by_motion
from fourreal.grid import to_uint8, to_unit
from fourreal.models.build import Params, make_forward, split_model
from fourreal.models.checkpoints import RUN_WEIGHTS
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.weights import CONFIG, weights_hash
from fourreal.parallel.mesh import make_mesh
from fourreal.serialize import differences, from_json, to_json
from fourreal.training.checkpoint import CHECKPOINTS, find_damage
from fourreal.training.loop import FREE, Run, Start, StopSignal, locked, prepare, train
from fourreal.training.metrics import LOG, read_metrics
from fourreal.training.validation import STEPS

BASE = "base"
ONE_STREAM = ("sequential", "fused")
TWO_STREAMS = ("soft", "hard", "none")
READOUTS = ("mean", "time", "view")
SCORES = "scores"  # the folder of test scores in a run's folder, a file for each number of steps

# name -> (what trains, the fusion)
ARMS: dict[str, tuple[str, GridDiTConfig]] = {
    f"{trains}-{fusion}": (trains, GridDiTConfig(fusion))
    for trains, fusions in (
        ("sync", ("soft", "hard")),
        ("attention", TWO_STREAMS + ONE_STREAM),
        ("all", TWO_STREAMS + ONE_STREAM),
    )
    for fusion in fusions
} | {
    f"{trains}-{fusion}-linear": (trains, GridDiTConfig(fusion, matched=True))
    for trains in ("attention", "all")
    for fusion in ONE_STREAM
}


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What is compared: `train` is what all runs share, the rest what they differ in."""

    train: TrainConfig
    """one run; an arm sets `trains` and `grid`, a run its seeds, `optim.lr` and `data.unit_share`"""
    arms: tuple[str, ...] = tuple(ARMS)
    """REGIME-FUSION, -linear for the control with soft's parameters; base trains the base alone"""
    seeds: tuple[int, ...] = (0,)
    """of the data, the masks, the noise, the choice of units and the parameters that the base lacks"""
    learning_rates: tuple[float, ...] = (1e-3,)
    """the report takes each arm at the one that validates best"""
    unit_shares: tuple[float, ...] = (0.1,)
    """shares of the training units whose grids a run sees"""
    base_steps: int = 2000
    """steps of the base, on clips of all units"""
    base_batch: int = 64
    """clips a step of the base"""
    test_grids: int = 128
    """grids of the test split"""

    def __post_init__(self):
        for name in ("seeds", "learning_rates", "unit_shares"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give at least one")
        for arm in self.arms:
            if arm != BASE and arm not in ARMS:
                near = difflib.get_close_matches(arm, ARMS, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise ValueError(f"there is no arm '{arm}': the arms are {', '.join((BASE, *ARMS))}{hint}")
        if self.train.optim.final_lr != 1:
            raise ValueError(
                f"train.optim.final_lr is {self.train.optim.final_lr}: give 1, a constant learning rate, or else no point of a "
                "curve but the last is a run of its length"
            )
        if self.test_grids < 1:
            raise ValueError(f"test_grids is {self.test_grids}: give 1 or more")

    def base_config(self) -> TrainConfig:
        """The run that trains the base."""
        data = dataclasses.replace(self.train.data, kind="clip", batch_size=self.base_batch, unit_share=1.0)
        return dataclasses.replace(self.train, name=BASE, data=data, steps=self.base_steps, trains="all")

    def runs(self, arm: str) -> list[TrainConfig]:
        """The runs of an arm."""
        trains, grid = ARMS[arm]
        return [
            dataclasses.replace(
                self.train,
                name=f"{arm}, seed {seed}, lr {lr:g}, {share:.0%} of the units",
                trains=trains,
                grid=grid,
                seed=seed,
                data=dataclasses.replace(self.train.data, kind="grid", seed=seed, unit_share=share),
                optim=dataclasses.replace(self.train.optim, lr=lr),
            )
            for share in self.unit_shares
            for lr in self.learning_rates
            for seed in self.seeds
        ]


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Trains and scores the arms of an ablation, and writes its tables."""

    config: Annotated[AblationConfig, tyro.conf.arg(name="")]
    runs: Path = Path("runs/ablation")
    """folder of the runs' folders"""
    docs: Path = Path("docs")
    """folder of ablation.md; the arms' files are in its folder ablation"""
    report: bool = False
    """only write the report from the arms' files"""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Ablate":
        """Reads `CONFIG_FILE [--setting value ...]`; the file gives the defaults of the settings."""
        if argv in (["-h"], ["--help"]):
            print(f"usage: {prog} CONFIG_FILE [OPTIONS]    ({prog} configs/ablation.py --help shows every setting)\n")
            print(__doc__)
            raise SystemExit(0)
        if not argv or argv[0].startswith("-"):
            raise ValueError(
                f"the first argument is the config file, as in: {prog} configs/ablation.py --arms all-soft"
            )
        config = load_config(argv[0], AblationConfig)
        return read_options(cls, argv[1:], f"{prog} {argv[0]}", default=cls(config))

    def run(self) -> None:
        """Trains what is missing, then writes the report; Ctrl-C and SIGTERM save the run under way and stop."""
        for option, folder in (("--runs", self.runs), ("--docs", self.docs)):
            check_creatable(folder, option)
        files = self.docs / "ablation"
        if not self.report:
            with StopSignal() as stop:
                ablate(self.config, self.runs, files, stop)
            if stop.interrupted:
                raise KeyboardInterrupt
        if self.report or set(self.config.arms) != {BASE}:
            print(f"report: {write_report(files, self.docs / 'ablation.md')}")


def ablate(config: AblationConfig, runs: Path, files: Path, stop: StopSignal) -> None:
    """Trains the base and the runs of the arms that `files` lacks; puts each finished run into its arm's file.

    Raises ValueError where a file holds a run of the same name with other settings.
    """
    base = runs / BASE
    jobs = [(BASE, config.base_config(), base)]
    jobs += [(arm, run, runs / arm / _folder(run)) for arm in config.arms if arm != BASE for run in config.runs(arm)]
    for arm, run_config, folder in jobs:
        file = files / f"{arm}.json"
        # the base's file may come without its weights, or its weights be those of a part of the training
        needed = folder == base and find_damage(base / CHECKPOINTS / str(run_config.steps))
        if is_finished(file, run_config, config.test_grids) and not needed:
            print(f"{run_config.name}: finished, in {file}")
            continue
        with locked(folder), jax.set_mesh(make_mesh(run_config.mesh)):
            record = train_run(run_config, folder, None if folder == base else base, config.test_grids, stop)
        if stop.asked:
            return
        put_run(file, arm, record)


def train_run(
    config: TrainConfig, folder: Path, base: Path | None, test_grids: int, stop: StopSignal
) -> dict[str, Any]:
    """Trains, or goes on with, one run; what there is to keep of it."""
    used = (folder / CONFIG).is_file()
    run = prepare(config, folder, Start(resume=used, init_from=str(base) if base else None))
    record = describe(run) | {"test_grids": test_grids}
    if base:
        record |= {"base": weights_hash(base / RUN_WEIGHTS), "flops_a_step": flops_a_step(run)}
        run.validate = with_scores(run, make_scorer(config, test_grids))
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
    units, grids = units_and_grids(run.config.data)
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


def make_scorer(config: TrainConfig, count: int) -> Callable[[Params, str], dict[str, list[float]]]:
    """`score(params, readout)`: the PSNR of every test grid, sampled in a few steps, over all, moving and static pixels."""
    batches = list(evaluation_batches(config.data, "test", count))
    levels = noise_levels(STEPS, config.sigma.shift)

    def sampler(readout: str) -> Callable[..., jax.Array]:
        graph, _ = split_model(config.model, dataclasses.replace(config.grid, readout=readout))
        forward = make_forward(graph)

        def sample(params: Params, frames: jax.Array, given: jax.Array, index: jax.Array) -> jax.Array:
            noise = jax.vmap(lambda seed: cell_noise(seed, *frames.shape[1:3], frames.shape[3:]))(index)
            model = functools.partial(forward, params)
            return to_uint8(sample_grid(model, to_unit(frames), given, noise, levels, config.model.prediction))

        return jax.jit(sample)

    samplers = {readout: sampler(readout) for readout in _readouts(config)}

    def score(params: Params, readout: str) -> dict[str, list[float]]:
        scores = []
        for batch in batches:
            sampled = samplers[readout](params, batch["frames"], batch["given"], batch["index"].astype(np.int32))
            scores += _grid_scores(np.asarray(sampled), batch)
        return _columns(scores)

    return score


def copy_scores(data: PipelineConfig, count: int) -> dict[str, dict[str, list[float]]]:
    """The test scores of the copies, which an arm should beat."""
    batches = list(evaluation_batches(dataclasses.replace(data, kind="grid"), "test", count))
    return {
        name: _columns(
            [
                score
                for batch in batches
                for score in _grid_scores(
                    np.stack([make(*grid) for grid in zip(batch["frames"], batch["given"], strict=True)]), batch
                )
            ]
        )
        for name, make in BASELINES.items()
    }


def is_finished(file: Path, config: TrainConfig, test_grids: int) -> bool:
    """Whether an arm's file holds the run. Raises ValueError if it holds one of that name with other settings."""
    for run in _stored(file):
        if run["settings"]["name"] == config.name:
            stored = to_json(from_json(TrainConfig, run["settings"]))
            changed = {
                name: pair
                for name, pair in differences(stored, to_json(config)).items()
                if name == "steps" or not name.startswith(FREE)
            }
            if run["test_grids"] != test_grids:
                changed["test_grids"] = (run["test_grids"], test_grids)
            if changed:
                name, (there, here) = next(iter(changed.items()))
                raise ValueError(
                    f"{file} has '{config.name}' with {name} {there}, not {here}: delete the file or give other --docs"
                )
            return True
    return False


def put_run(file: Path, arm: str, record: dict[str, Any]) -> None:
    """Puts a finished run into its arm's file, which is replaced as a whole."""
    runs = {run["settings"]["name"]: run for run in [*_stored(file), record]}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"arm": arm, "runs": [runs[name] for name in sorted(runs)]}, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)  # a list of numbers on one line
    building = file.with_suffix(f".{os.getpid()}.tmp")
    building.write_text(text + "\n")
    building.replace(file)


def _stored(file: Path) -> list[dict[str, Any]]:
    return read_arm(file) if file.is_file() else []


def _folder(config: TrainConfig) -> str:
    return f"seed{config.seed}-lr{config.optim.lr:g}-units{config.data.unit_share:g}"


def _readouts(config: TrainConfig) -> tuple[str, ...]:
    return READOUTS if config.grid.fusion in TWO_STREAMS else READOUTS[:1]


def with_scores(run: Run, score: Callable) -> Callable[[Params], tuple[dict[str, float], np.ndarray]]:
    """The run's validation, which also writes the test scores after as many steps as are done, at the end of each readout."""
    validate, folder = run.validate, run.folder / SCORES

    def validate_and_score(params: Params) -> tuple[dict[str, float], np.ndarray]:
        readouts = _readouts(run.config) if run.done == run.config.steps else READOUTS[:1]
        scores = {"step": run.done} | {readout: score(params, readout) for readout in readouts}
        folder.mkdir(exist_ok=True)
        file = folder / f"{run.done:07d}.json"
        file.with_suffix(".tmp").write_text(json.dumps(scores))
        file.with_suffix(".tmp").replace(file)
        return validate(params)

    return validate_and_score


def _grid_scores(sampled: np.ndarray, batch: dict[str, Any]) -> list[dict[str, float]]:
    """The scores of a batch's grids, without those that only fill it."""
    return [
        psnr_by_motion(result, truth, given)
        for result, truth, given, weight in zip(sampled, batch["frames"], batch["given"], batch["weight"], strict=True)
        if weight > 0
    ]


def _columns(scores: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Scores by name, to a thousandth of a dB; None where there is no such pixel."""
    return {
        name: [round(score[name], 3) if math.isfinite(score[name]) else None for score in scores] for name in scores[0]
    }
