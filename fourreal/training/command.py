"""The verb `train`: a config file, any of its settings overridden by name, and a folder for the run.

fourreal train configs/nano.py --optim.lr 3e-4 --out runs/nano
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import tyro

from fourreal.errors import FileInTheWay
from fourreal.host import processes as distributed
from fourreal.host.folders import check_creatable, in_bucket, run_path
from fourreal.training.config import STORED, TrainConfig, read_with_config
from fourreal.training.loop import run
from fourreal.training.run_folder import Start


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains what a config says, in a folder of its own.

    CONFIG is a file, as configs/nano.py, the bare name of one that is installed, as nano, or a run's folder, which goes on
    where it stopped with --resume. It gives the defaults of all settings, which options change.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """the run's folder, also gs://BUCKET/runs/NAME; none: runs/NAME, or the folder that is named instead of a file"""
    start: Annotated[Start, tyro.conf.arg(name="")] = Start()

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Train":
        """Reads `CONFIG [--setting value ...]`; a run's folder is also where it trains unless --out says otherwise."""
        options = read_with_config(cls, argv, prog, example="configs/nano.py --optim.lr 3e-4")
        if options.out is None and (run_path(argv[0]) / STORED).is_file():
            return dataclasses.replace(options, out=Path(argv[0]))
        return options

    def run(self) -> None:
        """Trains."""
        with distributed.start() as peers:
            self.train(peers)

    def train(self, peers: distributed.Peers) -> None:
        """As one of these processes."""
        folder = run_path(self.out or Path("runs") / self.config.name)
        with peers.giving_up(60 * (self.config.hang.restore or math.inf), f"{folder} could not be looked at"):
            peers.of_first("creatable", lambda: check_folder_name(folder))
        run(self.config, folder, self.start, peers)


def check_folder_name(folder: Path) -> None:
    """Raises OSError unless the folder is there or can be made; of one in a bucket that shows when it is written to."""
    if in_bucket(folder):
        return
    check_creatable(folder)
    if folder.exists() and not folder.is_dir():
        raise FileInTheWay(f"{folder} is a file: give a folder with --out")
