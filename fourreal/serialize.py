"""Configs as JSON and as words, and back: frozen dataclasses of numbers, names, tuples and other such dataclasses.

    {"width": 256, "conditions": [{"kind": "cameras", "drop": 0.5}]}        a field may hold one of several kinds
    cameras:drop=0.3                                                        the same on a command line

A `Kind` is a family of dataclasses that other packages may add to: importing the module that defines a subclass is enough.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from fourreal.errors import UserError

T = TypeVar("T")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_json(path: Path, kind: type = dict) -> Any:
    """What a file of JSON holds. Raises ValueError that names the file if that is no JSON or not of `kind`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): expected it as it was written, put a copy back") from error
    if not isinstance(found, kind):
        raise UserError(f"{path} holds {type(found).__name__}: expected {kind.__name__}, put a copy back")
    return found


class Kind:
    """Base of a family of frozen dataclasses; a subclass gives its name in stored configs and on command lines as `kind`."""

    kind: ClassVar[str] = ""
    family: ClassVar[str] = ""
    """what one of the family is called in errors"""

    @classmethod
    def kinds(cls) -> list[type["Kind"]]:
        """All of the family that imported modules define."""
        return [each for each in _subclasses(cls) if each.kind]

    @classmethod
    def named(cls, name: str) -> type["Kind"]:
        """The subclass of that kind. Raises UserError for one that no imported module defines, or that two define."""
        found = {each.__qualname__: each for each in cls.kinds() if each.kind == name}
        if len({each.__module__ for each in found.values()}) > 1:
            raise UserError(
                f"{cls.family} '{name}' is defined by several imported modules: give one of them another name"
            )
        if not found:
            known = sorted({each.kind for each in cls.kinds()})
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(
                f"there is no {cls.family} '{name}': {hint}known: {', '.join(known)}; --extensions MODULE (or importing it) "
                "adds another package's"
            )
        return list(found.values())[-1]

    @classmethod
    def from_text(cls, text: str) -> "Kind":
        """`NAME` or `NAME:field=value,field=value`, as on a command line."""
        name, values = named_values(text)
        return from_json(cls, {"kind": name, **values})

    def to_text(self) -> str:
        """What `from_text` reads; only what differs from the defaults."""
        name, said = self.kind, []
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) != field.default:
                said.append(f"{field.name}={value if isinstance(value, str) else json.dumps(to_json(value))}")
        return name + (":" + ",".join(said) if said else "")


def named_values(text: str) -> tuple[str, dict[str, Any]]:
    """(the name, the values by field) of `NAME:field=value,...`; a field may be dotted, a value is JSON or plain text."""
    name, _, rest = text.partition(":")
    values = {}
    for part in filter(None, re.split(r",(?=[\w.]+=)", rest)):  # a list has commas of its own
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"'{text}': expected NAME or NAME:field=value,...")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return name, values


def _subclasses(cls: type) -> list[type]:
    return [each for child in cls.__subclasses__() for each in (child, *_subclasses(child))]


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and numbers; a `Kind` says which one it is."""
    if dataclasses.is_dataclass(config):
        values = {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"kind": config.kind, **values} if isinstance(config, Kind) else values
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    return config


def from_json(kind: type[T], values: Any, where: str = "") -> T:
    """A config of dataclass `kind` from `to_json`'s form; ValueError names an unknown or missing key, or a wrong type."""
    if not isinstance(values, dict):
        raise UserError(
            f"{where.rstrip('.') or kind.__name__}: expected an object of {kind.__name__}, found {values!r}"
        )
    if issubclass(kind, Kind):
        values = dict(values)
        kind = kind.named(values.pop("kind", kind.kind))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields)}"
            raise UserError(f"unknown key '{where}{key}'; {hint}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise UserError(f"{kind.__name__} lacks the key '{where}{name}'")
    return kind(**{key: _value(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as its type hint has it: numbers, names, optional ones, nested dataclasses, and lists as tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    (option,) = (option for option in options if option is not type(None))
    if isinstance(option, type) and (dataclasses.is_dataclass(option) or issubclass(option, Kind)):
        return from_json(option, value, f"{where}.")
    kinds = typing.get_args(option)
    if (
        typing.get_origin(option) is tuple
        and isinstance(value, list | tuple)
        and kinds[1:] != (...,)
        and len(value) == len(kinds)
    ):
        return tuple(
            _value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if typing.get_origin(option) is tuple and isinstance(value, list | tuple) and kinds[1:] == (...,):
        return tuple(_value(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if typing.get_origin(option) is Literal:
        if value in kinds:
            return value
        raise UserError(f"{where} is {value!r}: expected one of {', '.join(kinds)}")
    if type(value) is option or (option is float and type(value) is int):
        return value
    expected = option.__name__ if isinstance(option, type) else "a list" + f" of {len(kinds)}" * (... not in kinds)
    raise UserError(f"{where} is {value!r}: expected {KINDS.get(option, expected)}")


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
