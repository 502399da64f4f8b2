"""`fourreal data render`: renders 4D grids and writes them as a data set."""

import time
from dataclasses import dataclass
from pathlib import Path

from fourreal.data.render.assets import Assets
from fourreal.data.render.candidates import Candidates
from fourreal.data.render.renderer import sides
from fourreal.data.write import Split, check_data_out, check_workers, write_with_bar
from fourreal.errors import UserError

LICENCE = "CC-BY-SA-3.0"  # of the bundled assets, and so of pictures of them


@dataclass(frozen=True)
class Render:
    """Render 4D grids and write them as ArrayRecord. After a kill the same command goes on."""

    out: Path
    """folder to write, for example data/render64"""
    train: int = 2000
    """grids in the training split"""
    validation: int = 64
    """grids in the validation split"""
    test: int = 64
    """grids in the test split"""
    views: int = 8
    """cameras, along an arc around the subject"""
    sweep: tuple[float, float] | None = None
    """lowest and highest angle of that arc, from its first camera to its last, in degrees; none: 20 to 120, or a quarter of
    it where the cameras mainly rise, come nearer or go away. With 8 views, 15 to 60 are the 2 to 8 degrees from frame to frame
    of a filmed freeze-time video"""
    times: int = 8
    """moments at which every camera takes a picture"""
    size: int | tuple[int, int] = 64
    """pixels a side, or height and width; powers of two"""
    workers: int = 2
    """processes that render and write; the data do not depend on it"""
    seed: int = 0
    """another seed renders other scenes"""
    assets: Path | None = None
    """folder of your own animated .glb files, instead of the bundled pack"""
    overwrite: bool = False
    """replace an existing folder"""

    def run(self) -> None:
        """Renders and writes. Raises UserError for bad counts, FileInTheWay for an existing `out`."""
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        if min(counts.values()) < 0 or not any(counts.values()):
            raise UserError(f"the splits {counts} hold no grids: ask for at least one")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: give 0 to 2^63 - 1")
        check_workers(self.workers)
        check_data_out(self.out, self.overwrite)
        assets = Assets(self.assets)
        if self.assets:
            assets.check()
        splits = {}
        for split, count in counts.items():
            if count:
                assets.clips(split)  # says now, not after an hour, that a split has no units
                candidates = Candidates(split, self.views, self.times, self.size, self.seed, self.assets, self.sweep)
                splits[split] = Split(candidates.make, count, candidates.part(count))
        began = time.monotonic()
        left_out = self._write(splits)
        seconds = time.monotonic() - began
        for split, reasons in left_out.items():
            said = ", ".join(f"{count} {flaw}" for flaw, count in sorted(reasons.items())) or "none"
            print(f"{split}: {counts[split]} grids; rejected: {said}")
        size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        print(f"{self.out}: {sum(counts.values()) / seconds:.2f} grids/s, {size / 1e6:.0f} MB, {seconds:.0f} s")

    def _write(self, splits: dict[str, Split]) -> dict[str, dict[str, int]]:
        """Writes the splits."""
        settings = {
            "seed": self.seed,
            "assets": self.assets.name if self.assets else "bundled",
            "shape": [self.views, self.times, *sides(self.size)],
        }
        if self.sweep:
            settings["sweep"] = list(self.sweep)
        return write_with_bar(
            self.out,
            splits,
            settings=settings,
            licence="" if self.assets else LICENCE,
            workers=self.workers,
            overwrite=self.overwrite,
        )
