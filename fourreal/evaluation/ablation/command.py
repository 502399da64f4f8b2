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
from pathlib import Path
from typing import Annotated

import jax
import tyro

from fourreal.evaluation.ablation.arms import BASE, AblationConfig
from fourreal.evaluation.ablation.files import is_finished, put_run
from fourreal.evaluation.ablation.report import write_report
from fourreal.evaluation.ablation.run import train_run
from fourreal.host.folders import check_creatable, locked
from fourreal.host.signals import StopSignal
from fourreal.parallel.mesh import make_mesh
from fourreal.training.config import TrainConfig, read_with_config
from fourreal.training.orbax import CHECKPOINTS, find_damage


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Trains and scores the arms of an ablation, and writes its tables.

    CONFIG is a file, as configs/ablation.py, or the bare name of one that is installed. It gives the defaults of all settings.
    """

    config: Annotated[AblationConfig, tyro.conf.arg(name="")]
    runs: Path = Path("runs/ablation")
    """folder of the runs' folders"""
    docs: Path = Path("docs")
    """folder of ablation.md; the arms' files are in its folder ablation"""
    report: bool = False
    """only write the report from the arms' files"""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Ablate":
        """Reads `CONFIG [--setting value ...]`."""
        return read_with_config(cls, argv, prog, AblationConfig, example="configs/ablation.py --arms all-soft")

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


def _folder(config: TrainConfig) -> str:
    return f"seed{config.seed}-lr{config.optim.lr:g}-units{config.data.unit_share:g}"
