"""The files of an ablation's results: one JSON file an arm, with its finished runs."""

import json
import os
import re
from pathlib import Path
from typing import Any

from fourreal.errors import UserError
from fourreal.serialize import differences, from_json, read_json, to_json
from fourreal.training.config import TrainConfig
from fourreal.training.run_folder import FREE

RUN = {"settings", "versions", "units", "grids", "test_grids", "curve", "validation"}  # what every run in a file has


def file_stem(arm: str) -> str:
    """An arm's name as part of a path."""
    return re.sub(r"[^\w.=+-]+", "_", arm).strip("_")


def read_arm(file: Path) -> tuple[str, list[dict[str, Any]]]:
    """(the name of the arm, its runs) in a file. Raises UserError for a file that is none."""
    values = read_json(file)
    runs = values.get("runs")
    if not isinstance(runs, list) or not all(isinstance(run, dict) and run.keys() >= RUN for run in runs):
        raise UserError(f"{file} holds no runs of an arm: put a copy back, or delete it to train them anew")
    return values.get("arm", file.stem), runs


def is_finished(file: Path, config: TrainConfig, test_grids: int) -> bool:
    """Whether an arm's file holds the run. Raises ValueError if it holds one of that name with other settings."""
    for run in _stored(file):
        if run["settings"]["name"] == config.name:
            try:
                stored = to_json(from_json(TrainConfig, run["settings"]))
            except UserError as error:
                raise UserError(
                    f"{file} has '{config.name}' with settings of another version ({error}): delete the file or give other "
                    "--docs"
                ) from error
            changed = {
                name: pair
                for name, pair in differences(stored, to_json(config)).items()
                if name == "steps" or not name.startswith(FREE)
            }
            if run["test_grids"] != test_grids:
                changed["test_grids"] = (run["test_grids"], test_grids)
            if changed:
                name, (there, here) = next(iter(changed.items()))
                raise UserError(
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
    return read_arm(file)[1] if file.is_file() else []
