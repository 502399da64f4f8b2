"""Where scenes come from. A config holds a `Source`; `open(split)` gives its scenes, which batches are cut from.

A source is one file in `data/sources/`, or in another package: a frozen dataclass with `kind` and `open`.
"""

from typing import Protocol

from fourreal.scene import Cut, Scene
from fourreal.serialize import Kind


class Scenes(Protocol):
    """Random access to the scenes of one split. It is read by several threads at once."""

    fingerprint: str
    """tells these scenes from others: a resumed run must find the same"""
    partial: bool
    """whether scenes may lack cells (`exists`) or pixels (`valid`)"""

    def __len__(self) -> int: ...

    def shape(self, i: int) -> tuple[int, int, int, int]:
        """(views, times, height, width) of scene `i`, without reading it."""
        ...

    def read(self, i: int, cut: Cut) -> Scene:
        """The cut of scene `i`; reads no more than it needs."""
        ...


class Source(Kind):
    """A kind of source; its fields say where and how."""

    family = "source"

    @classmethod
    def from_text(cls, text: str) -> "Source":
        """As a command line names it: `NAME:field=value,...`, or the folder of a data set."""
        from fourreal.data.sources import Records  # they know this base

        name = text.partition(":")[0]
        if any(name == each.kind for each in Source.kinds()):
            return super().from_text(text)
        return Records(text)

    def open(self, split: str) -> Scenes:
        """The scenes of a split (train, validation, test). Raises UserError where there are none."""
        raise NotImplementedError
