"""What earlier versions stored, as this one has it: configs carry a version, names of tensors are known by their form.

Version 0 (none stored): hints, cameras and text were settings of the base, a base alone had no grid config, frames were square.
"""

from typing import Any

from fourreal.errors import UserError

VERSION = 1
KEY = "version"
RENAMED = {  # names, or beginnings of names that end in a dot, of version 0
    "base.given": "base.given.vector",
    "base.context": "base.context.table",
    "base.hint_embed.": "base.conditions.hints.embed.",
    "base.camera_embed.": "base.conditions.cameras.embed.",
    "base.text_embed.": "base.conditions.text.embed.",
    "base.blocks.cross_norm.": "base.blocks.cross.text.norm.",
    "base.blocks.cross_attention.": "base.blocks.cross.text.",
}


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """A config in JSON form as it is written: with the version."""
    return {KEY: VERSION, **values}


def version_of(values: dict[str, Any]) -> int:
    """The version of a stored config. Raises UserError for one that is newer than this package."""
    version = values.get(KEY, 0)
    if type(version) is not int or not 0 <= version <= VERSION:
        raise UserError(f"it has version {version!r}, this package reads up to {VERSION}: upgrade fourreal")
    return version


def upgraded_spec(values: dict[str, Any]) -> dict[str, Any]:
    """A stored model spec in today's form, without its version."""
    values = dict(values)
    version = version_of(values)
    values.pop(KEY, None)
    if version == 0:
        if isinstance(values.get("model"), dict):
            values["model"] = _model_of_0(values["model"])
        if values.get("grid", 0) is None:
            values["grid"] = {"fusion": "base"}
        if type(values.get("size")) is int:
            values["size"] = [values["size"]] * 2
    return values


def _model_of_0(model: dict[str, Any]) -> dict[str, Any]:
    model = dict(model)
    hints, cameras, width = model.pop("hints", False), model.pop("cameras", False), model.pop("text_width", None)
    listed = [{"kind": "hints"}] * (hints is True) + [{"kind": "cameras"}] * (cameras is True)
    return model | {"conditions": listed + ([] if width is None else [{"kind": "text", "width": width}])}


def renamed(name: str) -> str:
    """A tensor's name as this version has it."""
    for old, new in RENAMED.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return name
