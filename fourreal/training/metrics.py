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
        resumed = self._path.is_file()
        if resumed:
            lines = self._path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a killed run may leave a torn last line
            kept = [line for line in whole if json.loads(line)["step"] <= start_step]
            self._path.with_suffix(".tmp").write_text("".join(kept))
            self._path.with_suffix(".tmp").replace(self._path)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if resumed else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of numbers after `step` steps (null where there is none); names with a slash are grouped in TensorBoard."""
        values = {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [h, w, 3], for TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is buffered."""
        self._board.close()
