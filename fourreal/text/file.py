"""Prompts with their features in one safetensors file, as `fourreal embed-text` writes it and training and sampling read it.

Tensors `prompt.0`, `prompt.1`, ... [l k], each as long as its prompt; `empty`, of the empty prompt, which training shows for a
dropped one; `negative`, of what guidance goes away from. The header holds the prompts as JSON, the negative prompt and the
hash of the encoder's config. Numbers are bfloat16, half of float32: Wan runs its encoder and its transformer in it.
"""

import dataclasses
import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from fourreal.errors import MissingFile, UserError
from fourreal.host.streamed import Streamed, write_streamed

FORMAT = "fourreal text 1"
TOKENS = 512  # of a text, as Wan takes it
NEAREST = 3  # prompts that an error names


class StoredFeatures(Mapping[str, Float[np.ndarray, "l k"]]):
    """Features by prompt, float32, each read from the open file when it is asked for."""

    def __init__(self, file: Any, names: Mapping[str, str]):
        self._file, self._names = file, dict(names)

    def __getitem__(self, prompt: str) -> Float[np.ndarray, "l k"]:
        return self._file.get_tensor(self._names[prompt]).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompts and their features, float32, none of them padded."""

    prompts: tuple[str, ...]
    """each once, white space as single blanks"""
    features: Mapping[str, Float[np.ndarray, "l k"]]
    """by prompt"""
    empty: Float[np.ndarray, "n k"]
    """of the empty prompt"""
    negative: Float[np.ndarray, "m k"]
    """of the negative prompt"""
    negative_prompt: str = ""
    encoder: str = ""
    """SHA-256 of the encoder's config, in hex"""

    @property
    def width(self) -> int:
        """Of the features."""
        return self.empty.shape[1]

    def find(self, prompt: str | None) -> str:
        """The prompt as it stands here; None: the only one. Raises UserError where there is none, naming the nearest."""
        if prompt is None:
            if len(self.prompts) > 1:
                raise UserError(f"the file holds {len(self.prompts)} prompts, {self._some(self.prompts)}: name one")
            return self.prompts[0]
        if (prompt := one_line(prompt)) in self.features:
            return prompt
        near = difflib.get_close_matches(prompt[:100], [each[:100] for each in self.prompts], n=NEAREST, cutoff=0.0)
        found = [next(each for each in self.prompts if each[:100] == begin) for begin in near]
        raise UserError(
            f"the file has no prompt {_quoted(prompt)}; the nearest of its {len(self.prompts)}: {self._some(found)}"
        )

    def _some(self, prompts: Sequence[str]) -> str:
        return ", ".join(map(_quoted, prompts[:NEAREST])) + (", ..." if len(prompts) > NEAREST else "")


def one_line(prompt: str) -> str:
    """A prompt with its white space as single blanks, which is how the encoder sees it, too."""
    return " ".join(prompt.split())


def write_texts(
    path: Path,
    prompts: Sequence[str],
    negative: str,
    lengths: Sequence[int],
    width: int,
    features: Iterable[Float[np.ndarray, "l k"]],
    encoder: str = "",
) -> None:
    """Writes the file, which appears complete or not at all; one of the features is in memory at a time.

    `features` come in the order empty, negative, prompts, and so do their `lengths`; each prompt once. Raises UserError for
    numbers that are not finite, OSError where writing fails.
    """
    source = iter(features)

    def parts() -> Iterator[Float[np.ndarray, "l k"]]:
        array = next(source)
        if not np.isfinite(array).all():
            raise UserError("the encoder gave numbers that are not finite: use other weights, or --dtype float32")
        yield array

    kind = np.dtype(ml_dtypes.bfloat16)
    tensors = {
        name: Streamed((length, width), kind, parts) for name, length in zip(_names(len(prompts)), lengths, strict=True)
    }
    listed = json.dumps(list(prompts), ensure_ascii=False)
    metadata = {"format": FORMAT, "prompts": listed, "negative": negative, "encoder": encoder}
    write_streamed(path, tensors, metadata)


def read_texts(path: str | Path) -> Texts:
    """The file, of which features by prompt are read when they are asked for. Raises UserError for one that is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFile(f"there is no file {path}: fourreal embed-text writes one")
    try:
        file = safe_open(path, "numpy")
    except SafetensorError as error:
        raise UserError(f"{path} is broken ({error}): copy the file again") from error
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} holds no prompts with their features: take a file of fourreal embed-text")
    try:
        prompts = tuple(json.loads(metadata["prompts"]))
        if not prompts:
            raise ValueError("none is named")
        names = _names(len(prompts))
        shapes = [file.get_slice(name).get_shape() for name in names]
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} lacks prompts or their features ({error}): write it again") from error
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise UserError(f"{path} has features that are not [l, {shapes[0][-1]}]: write it again")
    empty, negative = (file.get_tensor(name).astype(np.float32) for name in names[:2])
    features = StoredFeatures(file, dict(zip(prompts, names[2:], strict=True)))
    return Texts(prompts, features, empty, negative, metadata.get("negative", ""), metadata.get("encoder", ""))


def read_utf8(path: Path) -> str:
    """A text file. Raises UserError for one that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error


def captions_of(path: Path, texts: Texts) -> list[str]:
    """The lines of a file of captions. Raises MissingFile for none, UserError, with its number, for one without features."""
    if not path.is_file():
        raise MissingFile(f"there is no file of captions {path}: `fourreal data captions` writes one")
    lines = read_utf8(path).rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            texts.find(line)
        except UserError as error:
            raise UserError(f"--captions {path}, line {number}: {error}; embed this file's lines") from error
    return lines


def _names(count: int) -> list[str]:
    return ["empty", "negative", *map("prompt.{}".format, range(count))]


def _quoted(prompt: str) -> str:
    return json.dumps(textwrap.shorten(prompt, 60, placeholder=" ..."), ensure_ascii=False)
