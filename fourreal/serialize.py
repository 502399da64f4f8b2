"""Configs as JSON and back: frozen dataclasses of numbers, names, tuples and other such dataclasses."""

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and numbers."""
    return dataclasses.asdict(config)


def from_json(kind: type[T], values: Any, where: str = "") -> T:
    """A config of dataclass `kind` from `to_json`'s form; an unknown or missing key raises ValueError naming it."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or kind.__name__}: expected an object of {kind.__name__}, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ValueError(f"unknown key '{where}{key}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise ValueError(f"{kind.__name__} lacks the key '{where}{name}'")
    return kind(**{key: _value(hints[key], value, f"{where}{key}.") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as its type hint has it: nested dataclasses, optional ones, and lists as tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option):
            return from_json(option, value, where)
    return tuple(value) if isinstance(value, list) else value


def differences(ours: dict[str, Any], theirs: dict[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs in JSON form differ: dotted name -> (ours, theirs)."""
    found = {}
    for key in {**ours, **theirs}:
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{where}{key}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            found[f"{where}{key}"] = (a, b)
    return found
