"""A run's folder: what it may hold when a run starts, goes on or starts anew, and what it is filled with first."""

import dataclasses
import json
import secrets
from pathlib import Path

from fourreal.checkpoints.upgrade import stored
from fourreal.checkpoints.weights import CONFIG, read_config
from fourreal.errors import MissingFile, UserError
from fourreal.host.folders import LEASE, delete, write_whole
from fourreal.host.retry import read_again
from fourreal.serialize import differences, to_json
from fourreal.training.config import TrainConfig, read_run
from fourreal.training.log import LOG, read_metrics

# What a resumed run may change, also everything below a name; the rest decides what the steps compute.
FREE = (
    "name",
    "steps",
    "eval_every",
    "eval_grids",
    "save_every",
    "save_minutes",
    "keep_every",
    "local_every",
    "local_folder",
    "log_every",
    "profile_steps",
    "wandb",
    "bad_steps",
    "replicas_every",
    "watchdog_minutes",
    "hang",
    "repeat_examples",
    "data.source",
    "data.threads",
    "data.prefetch",
    "model.remat",
    "model.unroll",
    "optim.microbatch",
    "mesh",
    "attention",
    "overlap",
)
INIT_FROM = "init_from.txt"  # a run's file that names the weights it started from
COMPILED = "compiled"  # what JAX compiled, which may be there before the run is
BESIDE = (COMPILED, LEASE)
DATA = "data.sha256"  # and the one that tells its data set from others
IDENTITY = "identity.txt"  # and the one that tells it from a run that was in its folder before


@dataclasses.dataclass(frozen=True)
class Start:
    """How a run starts."""

    resume: bool = False
    """go on from the run's newest checkpoint"""
    overwrite: bool = False
    """delete the run's folder first"""
    init_from: str | None = None
    """checkpoint whose weights (parameters only) a fresh run starts from"""


def check_folder(config: TrainConfig, folder: Path, start: Start) -> None:
    """Raises for a run's folder that exists, or does not, or is of another run, against what the user said."""
    if start.resume and start.overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one")
    used = folder.is_dir() and any(entry.name not in BESIDE for entry in folder.iterdir())
    if start.resume:
        if not (folder / CONFIG).is_file():
            raise MissingFile(f"there is no run in {folder} to resume: leave --resume out")
        before = to_json(read_run(folder))  # with the settings that are newer than the run
        changed = {
            name: pair for name, pair in differences(before, to_json(config)).items() if not name.startswith(FREE)
        }
        if changed:
            name, (there, here) = next(iter(changed.items()))
            raise UserError(
                f"{folder} was trained with {name} {there}, not {here}: resume with the settings it was started with"
            )
        known = folder / DATA
        source = config.data.source
        if known.is_file() and known.read_text() != read_again(lambda: source.open("train")).fingerprint:
            raise UserError(
                f"{folder} was trained on another data set than the one in {source.to_text()}: name that one with "
                "--data.source, or start again with --overwrite"
            )
        if before["steps"] != config.steps and config.optim.final_lr != 1:
            print(
                f"{config.steps} steps instead of {before['steps']}: the learning rate follows the new schedule from here"
            )
    elif used and not start.overwrite:
        raise UserError(f"{folder} exists: give --resume to go on, --overwrite to delete it, or another --out")
    elif used:
        try:
            ours = {"model", "optim", "data"} <= read_config(folder).keys()
        except UserError:
            ours = False
        if not ours:
            raise UserError(f"{folder} is no run's folder, so --overwrite leaves it: give another --out")


def check_log(folder: Path) -> None:
    """Raises ValueError where the log goes further than a run can without a whole checkpoint, so that none is lost unseen.

    The first save ends before the second begins, so it goes to the second at most.
    """
    done = max((line["step"] for line in read_metrics(folder / LOG)), default=0)
    if done > 2 * read_config(folder)["save_every"]:
        raise UserError(
            f"{folder} was trained for {done} steps, but its checkpoints are gone: put a copy back, or start again with "
            "--overwrite"
        )


def make_folder(
    config: TrainConfig, folder: Path, overwrite: bool, init_from: str | None, fingerprint: str, identity: str = ""
) -> None:
    """Fills the run's folder with its config.json and what it is and starts from; under `overwrite`, empties it first."""
    if overwrite:
        for entry in folder.iterdir():  # not the folder itself: it may be a link to another disk
            if entry.name not in (CONFIG, *BESIDE):  # CONFIG: it stays a run's folder if this process is killed now
                delete(entry)
    if init_from:
        (folder / INIT_FROM).write_text(init_from)
    write_whole(folder / CONFIG, json.dumps(stored(to_json(config)), indent=2) + "\n")
    for name, text in ((DATA, fingerprint), (IDENTITY, identity)):
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            write_whole(folder / name, text)


def identity_of(folder: Path, resume: bool) -> str:
    """What tells a run from another that was in its folder before."""
    path = folder / IDENTITY
    return path.read_text() if resume and path.is_file() else secrets.token_hex(8)
