"""Weights & Biases beside a run's own logs, where the config names a project: the same numbers, one run over all restarts.

Its own settings hold: `wandb login` first, or WANDB_MODE=offline. Steps that a kill or bad numbers undid stand there twice.
"""

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from fourreal.errors import UserError, one_line

FILE = "wandb.txt"  # of a run's folder: its id there
WITHOUT = "or leave --wandb out"


def check_wandb() -> Any:
    """The package. Raises ModuleNotFoundError with a line that says how to get it."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise ModuleNotFoundError(
            f"--wandb needs the package wandb: pip install wandb, {WITHOUT}", name="wandb"
        ) from None
    return wandb


class WandbLog:
    """One run of a project there."""

    def __init__(self, project: str, folder: Path, name: str, settings: dict[str, Any]):
        """Raises UserError where it does not start, as without a login."""
        wandb, file = check_wandb(), folder / FILE
        if not file.is_file():
            file.write_text(uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=project, id=file.read_text(), name=name, dir=folder, config=settings, resume="allow"
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"wandb: {one_line(error)}: run `wandb login`, set WANDB_MODE=offline, {WITHOUT}"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Numbers after `step` steps."""
        self._run.log({"step": step, **{name: value for name, value in values.items() if value is not None}})

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [h, w, 3]."""
        self._run.log({"step": step, name: self._image(picture)})

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
