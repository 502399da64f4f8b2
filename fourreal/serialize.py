"""Configs as JSON and back: frozen dataclasses of numbers, names, tuples and other such dataclasses."""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_json(path: Path, kind: type = dict) -> Any:
    """What a file of JSON holds. Raises ValueError that names the file if that is no JSON or not of `kind`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): expected it as it was written, put a copy back") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path} holds {type(found).__name__}: expected {kind.__name__}, put a copy back")
    return found


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and numbers."""
    return dataclasses.asdict(config)


def from_json(kind: type[T], values: Any, where: str = "") -> T:
    """A config of dataclass `kind` from `to_json`'s form; ValueError names an unknown or missing key, or a wrong type."""
    if not isinstance(values, dict):
        raise ValueError(
            f"{where.rstrip('.') or kind.__name__}: expected an object of {kind.__name__}, found {values!r}"
        )
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields)}"
            raise ValueError(f"unknown key '{where}{key}'; {hint}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise ValueError(f"{kind.__name__} lacks the key '{where}{name}'")
    return kind(**{key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as its type hint has it: numbers, names, optional ones, nested dataclasses, and lists as tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    (option,) = (option for option in options if option is not type(None))
    if dataclasses.is_dataclass(option):
        return from_json(option, value, f"{where}.")
    kinds = typing.get_args(option)
    if typing.get_origin(option) is tuple and isinstance(value, list | tuple) and len(value) == len(kinds):
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if typing.get_origin(option) is Literal:
        if value in kinds:
            return value
        raise ValueError(f"{where} is {value!r}: expected one of {', '.join(kinds)}")
    if type(value) is option or (option is float and type(value) is int):
        return value
    expected = option.__name__ if isinstance(option, type) else f"a list of {len(kinds)}"
    raise ValueError(f"{where} is {value!r}: expected {KINDS.get(option, expected)}")


def flat_settings(config: dict[str, Any], where: str = "") -> dict[str, Any]:
    """A config in JSON form as one dict of dotted names; the numbers of a list are settings, too."""
    found = {}
    for key, value in config.items():
        if isinstance(value, list | tuple):
            value = {str(i): item for i, item in enumerate(value)}
        found |= flat_settings(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
    return found


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
