"""`fourreal data render`: renders 4D grids and writes them as a data set."""

import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fourreal.data.assets import Assets
from fourreal.data.builders.grids import write_grids
from fourreal.data.grid_stream import GridRequest, GridStream
from fourreal.destination import check_creatable, whole_folder


@dataclass(frozen=True)
class Render:
    """Render 4D grids and write them as ArrayRecord."""

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
    times: int = 8
    """moments at which every camera takes a picture"""
    size: int = 64
    """pixels a side, a power of two"""
    workers: int = 2
    """processes that render; the data do not depend on it"""
    seed: int = 0
    """another seed renders other scenes"""
    assets: Path | None = None
    """folder of your own animated .glb files, instead of the bundled pack"""
    overwrite: bool = False
    """replace an existing folder"""

    def run(self) -> None:
        """Renders and writes. Raises ValueError for bad counts, FileExistsError for an existing `out`."""
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        if min(counts.values()) < 0 or not any(counts.values()):
            raise ValueError(f"the splits {counts} hold no grids: ask for at least one")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed}: give 0 to 2^63 - 1")
        check_creatable(self.out)
        if self.out.exists() and not self.overwrite:
            raise FileExistsError(f"{self.out} exists already: name another --out or pass --overwrite")
        if self.out.exists() and not self.out.is_dir():
            raise FileExistsError(f"{self.out} is a file: name a folder with --out")
        if self.out.exists() and any(self.out.iterdir()) and not (self.out / "dataset_info.json").is_file():
            raise FileExistsError(f"{self.out} is no data set, so --overwrite leaves it: name another --out")
        assets = Assets(self.assets)
        if self.assets:
            assets.check()
        streams = {}
        for split, count in counts.items():
            if count:
                assets.clips(split)  # says now, not after an hour, that a split has no units
                request = GridRequest(split, self.views, self.times, self.size, self.seed, self.assets)
                streams[split] = GridStream(request, count, self.workers)
        started = time.monotonic()
        with (
            whole_folder(self.out) as building,
            tqdm(total=sum(counts.values()), unit="grid", dynamic_ncols=True) as bar,
        ):
            shown = {split: _Shown(stream, split, bar) for split, stream in streams.items()}
            notes = {"seed": self.seed, "assets": self.assets.name if self.assets else "bundled"}
            write_grids(building, shown, (self.views, self.times, self.size), notes)
        seconds = time.monotonic() - started
        for split, stream in streams.items():
            reasons = ", ".join(f"{count} {flaw}" for flaw, count in sorted(stream.rejected.items())) or "none"
            print(f"{split}: {stream.count} grids; rejected: {reasons}")
        size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        print(f"{self.out}: {sum(counts.values()) / seconds:.2f} grids/s, {size / 1e6:.0f} MB, {seconds:.0f} s")


@dataclass(frozen=True)
class _Shown:
    """A stream whose examples move a progress bar."""

    stream: GridStream
    split: str
    bar: tqdm

    def __iter__(self):
        self.bar.set_description(self.split)
        for example in self.stream:
            yield example
            self.bar.update()
