"""Where a run's numbers go: `metrics.jsonl` and TensorBoard events in the run's folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np


class MetricsWriter:
    """Appends numbers and pictures by step; a resumed run continues both files, dropping what came after its step."""

    def __init__(self, folder: Path, start_step: int):
        from tensorboardX import SummaryWriter

        self._path = folder / "metrics.jsonl"
        if self._path.is_file():
            lines = [line for line in self._path.read_text().splitlines() if json.loads(line)["step"] <= start_step]
            self._path.write_text("".join(f"{line}\n" for line in lines))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of numbers after `step` steps; names with a slash are grouped in TensorBoard."""
        values = {name: float(value) for name, value in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [h, w, 3], for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered."""
        self._board.close()
