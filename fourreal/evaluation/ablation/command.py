"""The verb `ablate`: trains arms that differ in one thing on the same data and noise, and keeps what each scores.

    fourreal ablate configs/shift_and_roll.py                             the base, then every arm, then the report
    fourreal ablate configs/shift_and_roll.py --arms all-soft sync-soft   a part; finished runs are skipped, broken ones go on
    fourreal ablate configs/shift_and_roll.py --report                    only the report, from the files beside it

See `arms.py` for what an arm is. Each arm is trained once for every seed, learning rate and share of the units, through
`training/loop.py`, in a run's folder of its own. All start from one base, trained on clips of all units; an arm that has
nothing to train is its base, evaluated. A run's examples, masks and noise depend on its seed and the step alone, so equal steps
of two arms are paired; so are the sampled test grids, whose noise depends on the grid.

The learning rate is constant after its warm-up: then the average of the parameters after n steps is what a run of n
steps would leave, and the curve can be read at any number of FLOPs.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from fourreal.evaluation.ablation.arms import BASE, AblationConfig, parse_arm
from fourreal.evaluation.ablation.files import file_stem, is_finished, put_run
from fourreal.evaluation.ablation.report import write_report
from fourreal.evaluation.ablation.run import score_untrained, train_run, trains_nothing
from fourreal.host.folders import check_creatable, locked
from fourreal.host.signals import StopSignal
from fourreal.parallel.mesh import make_mesh
from fourreal.training.config import TrainConfig, read_with_config
from fourreal.training.orbax import CHECKPOINTS, find_damage


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Trains and scores the arms of an ablation, and writes its tables.

    CONFIG is a file, as configs/shift_and_roll.py, or the bare name of one that is installed. It gives the defaults of all
    settings.
    """

    config: Annotated[AblationConfig, tyro.conf.arg(name="")]
    runs: Path = Path("runs")
    """folder of the runs, each ablation in a folder of its name"""
    docs: Path = Path("docs/ablation")
    """folder of the report NAME.md; the arms' files are in its folder NAME"""
    report: bool = False
    """only write the report from the arms' files"""

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Ablate":
        """Reads `CONFIG [--setting value ...]`."""
        return read_with_config(cls, argv, prog, AblationConfig, example="configs/shift_and_roll.py --arms all-soft")

    def run(self) -> None:
        """Trains what is missing, then writes the report; Ctrl-C and SIGTERM save the run under way and stop."""
        for option, folder in (("--runs", self.runs), ("--docs", self.docs)):
            check_creatable(folder, option)
        name = self.config.train.name
        files = self.docs / name
        if not self.report:
            with StopSignal() as stop:
                ablate(self.config, self.runs / name, files, stop)
            if stop.interrupted:
                raise KeyboardInterrupt
        if self.report or set(self.config.arms) != {BASE}:
            print(f"report: {write_report(files, self.docs / f'{name}.md')}")


def ablate(config: AblationConfig, runs: Path, files: Path, stop: StopSignal) -> None:
    """Trains the bases and the runs of the arms that `files` lacks; puts each finished run into its arm's file.

    Raises UserError where a file holds a run of the same name with other settings.
    """
    arms = [arm for arm in config.arms if parse_arm(arm)[0] != BASE]
    bases = [arm for arm in config.arms if arm not in arms] + [config.base_of(arm) for arm in arms]
    jobs = [(base, config.base_config(base), runs / file_stem(base)) for base in dict.fromkeys([BASE, *bases])]
    jobs += [(arm, run, runs / file_stem(arm) / _folder(run)) for arm in arms for run in config.runs(arm)]
    for arm, run_config, folder in jobs:
        file = files / f"{file_stem(arm)}.json"
        base = None if parse_arm(arm)[0] == BASE else runs / file_stem(config.base_of(arm))
        if base and trains_nothing(run_config) and run_config.seed != config.seeds[0]:
            continue  # the same for all seeds
        # the base's file may come without its weights, or its weights be those of a part of the training
        needed = base is None and find_damage(folder / CHECKPOINTS / str(run_config.steps))
        if is_finished(file, run_config, config.test_grids) and not needed:
            print(f"{run_config.name}: finished, in {file}")
            continue
        with locked(folder), jax.set_mesh(make_mesh(run_config.mesh)):
            if base and trains_nothing(run_config):
                print(f"{run_config.name}: nothing to train, only scored")
                record = score_untrained(config, run_config, base)
            else:
                record = train_run(config, run_config, folder, base, stop)
        if stop.asked:
            return
        put_run(file, arm, record)


def _folder(config: TrainConfig) -> str:
    return f"seed{config.seed}-lr{config.optim.lr:g}-units{config.data.unit_share:g}"
