"""The verb `train`: a config file, any of its settings overridden by name, and a folder for the run.

fourreal train configs/nano.py --optim.lr 3e-4 --out runs/nano
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from fourreal.cli import read_options
from fourreal.config import TrainConfig, load_config
from fourreal.destination import check_creatable
from fourreal.parallel import distributed
from fourreal.training.loop import Start, run


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains what a config file says, in a folder of its own."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """the run's folder; none: runs/NAME"""
    start: Annotated[Start, tyro.conf.arg(name="")] = Start()

    @classmethod
    def parse(cls, argv: list[str], prog: str) -> "Train":
        """Reads `CONFIG_FILE [--setting value ...]`; the file gives the defaults of the settings."""
        if argv in (["-h"], ["--help"]):
            print(
                f"usage: {prog} CONFIG_FILE [OPTIONS]    ({prog} configs/nano.py --help shows every setting)\n\n{__doc__}"
            )
            raise SystemExit(0)
        if not argv or argv[0].startswith("-"):
            raise ValueError(f"the first argument is the config file, as in: {prog} configs/nano.py --optim.lr 3e-4")
        return read_options(cls, argv[1:], f"{prog} {argv[0]}", default=cls(load_config(argv[0])))

    def run(self) -> None:
        """Trains."""
        with distributed.start() as peers:
            self.train(peers)

    def train(self, peers: distributed.Peers) -> None:
        """As one of these processes."""
        folder = self.out or Path("runs") / self.config.name
        peers.of_first("creatable", lambda: check_folder_name(folder))
        run(self.config, folder, self.start, peers)


def check_folder_name(folder: Path) -> None:
    """Raises OSError unless the folder is there or can be made."""
    check_creatable(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a folder with --out")
