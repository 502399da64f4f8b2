"""Options of a command as frozen dataclasses, read by tyro; what tyro draws as a box becomes one line.

`--extensions MODULE ...` goes with every command: importing a module is what makes its conditions, fusions, ... known.

A field that holds a `Kind`, or a tuple of them, is written as on the command line: `--model.conditions hints cameras:drop=0.3`.
"""

import contextlib
import importlib
import io
import os
import sys
import typing
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeVar

from fourreal.errors import UserError
from fourreal.serialize import Kind

T = TypeVar("T")
EXTENSIONS = "--extensions"


def take_extensions(argv: list[str]) -> list[str]:
    """Imports the modules that `--extensions MODULE ...` names, for the kinds that they define; the other options.

    Raises UserError for one that cannot be imported. The folder where the command runs is looked in first.
    """
    if EXTENSIONS not in argv:
        return argv
    start = argv.index(EXTENSIONS) + 1
    end = next((place for place in range(start, len(argv)) if argv[place].startswith("-")), len(argv))
    if start == end:
        raise UserError(
            f"{EXTENSIONS}: name the modules that define what is missing here, as {EXTENSIONS} mypackage.wind"
        )
    sys.path.insert(0, os.getcwd())
    import_extensions(argv[start:end])
    return [*argv[: start - 1], *argv[end:]]


def import_extensions(names: Sequence[str | ModuleType]) -> None:
    """Imports modules by name; those that are imported already may stand for themselves."""
    for name in names:
        try:
            importlib.import_module(name) if isinstance(name, str) else None
        except ImportError as error:
            raise UserError(
                f"extension {name}: cannot be imported ({error}): name a module, as mypackage.wind"
            ) from error


def read_options(options: type[T], argv: list[str], prog: str, **settings: Any) -> T:
    """The dataclass `options` from the command line; raises UserError with what is wrong in one line."""
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(options, args=argv, prog=prog, registry=_kinds(), **settings)
    except SystemExit as stop:
        if not stop.code:
            raise
    rows = [row.strip("│|").strip() for row in box.getvalue().splitlines()[1:-1]]
    sections = " ".join(row if set(row) - set("─-") else ";" for row in rows)
    raise UserError(sections.replace(" ;", ";"))


def _kinds() -> Any:
    """tyro's rules for a field of one `Kind` (one word) and of several (any number of words)."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    def is_kind(hint: Any) -> bool:
        return isinstance(hint, type) and issubclass(hint, Kind)

    @registry.primitive_rule
    def of_kinds(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        parts = typing.get_args(info.type)
        if is_kind(info.type):
            return tyro.constructors.PrimitiveConstructorSpec(
                nargs=1,
                metavar="NAME[:FIELD=VALUE,...]",
                instance_from_str=lambda words: info.type.from_text(words[0]),
                is_instance=lambda value: isinstance(value, info.type),
                str_from_instance=lambda value: [value.to_text()],
            )
        if typing.get_origin(info.type) is tuple and parts[1:] == (...,) and is_kind(parts[0]):
            return tyro.constructors.PrimitiveConstructorSpec(
                nargs="*",
                metavar="[NAME[:FIELD=VALUE,...] ...]",
                instance_from_str=lambda words: tuple(parts[0].from_text(word) for word in words),
                is_instance=lambda value: isinstance(value, tuple) and all(isinstance(v, parts[0]) for v in value),
                str_from_instance=lambda value: [each.to_text() for each in value],
            )
        return None

    return registry
