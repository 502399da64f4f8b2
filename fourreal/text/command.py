"""The verb `embed-text`: prompts in, a file of their features out."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from fourreal.errors import FileInTheWay, MissingFile, UserError
from fourreal.host.folders import check_creatable
from fourreal.text.encoder import NEGATIVE, Precision, cut, embed, open_encoder
from fourreal.text.file import TOKENS, one_line, read_texts, read_utf8, write_texts


@dataclass(frozen=True)
class EmbedText:
    """Embed prompts with Wan's text encoder, UMT5, for training and sampling; needs pip install -e '.[text]'.

    The file also holds the features of the empty prompt, which training shows where it drops text, and those of the negative
    prompt, which guidance goes away from.
    """

    prompts: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPTS.txt")]
    """a prompt a line, in UTF-8; blank lines are skipped. A prompt holds no line breaks: to the encoder they would be blanks"""
    encoder: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """a Wan pipeline's, in diffusers' layout, with text_encoder and tokenizer"""
    out: Annotated[str, tyro.conf.arg(metavar="PATH")]
    """file to write, text.safetensors, say"""
    negative: str = NEGATIVE
    """negative prompt; by default Wan's own"""
    dtype: Precision = "float32"
    """what the encoder runs in: float32, for UMT5-XXL 23 GB of memory, or bfloat16, half of it; stored is bfloat16"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the file if it exists"""

    def run(self) -> None:
        """Writes the whole file or nothing."""
        out = Path(self.out).expanduser()
        check_out(out, self.overwrite)
        lines = read_prompts(Path(self.prompts).expanduser())
        said = {"empty prompt": "", "negative prompt": self.negative} | {f"line {n}": line for line, n in lines.items()}
        with open_encoder(self.encoder, self.dtype) as encoder:
            tokens = encoder.tokens(list(said.values()))
            for where, each in zip(said, tokens, strict=True):
                if len(each) > TOKENS:
                    print(f"warning: {where} has {len(each)} tokens: cut to {TOKENS}", file=sys.stderr)
            tokens = [cut(each) for each in tokens]
            lengths = [len(each) for each in tokens]
            out.parent.mkdir(parents=True, exist_ok=True)
            with tqdm(total=len(tokens), unit="prompt", dynamic_ncols=True) as bar:
                features = embed(encoder, tokens, bar.update)
                kept = one_line(self.negative)
                write_texts(out, list(lines), kept, lengths, encoder.width, features, encoder.config_hash)
        print(f"{len(lines)} prompts of {sum(lengths[2:])} tokens, {encoder.width} numbers a token\n{out}")


def check_out(out: Path, overwrite: bool) -> None:
    """Raises FileInTheWay where another file or a folder stands at `out`, OSError where none can be made."""
    check_creatable(out)
    if not out.exists():
        return
    if not overwrite:
        raise FileInTheWay(f"--out {out} exists; add --overwrite to replace it, or choose another name")
    try:
        read_texts(out)
    except UserError as error:
        raise FileInTheWay(f"--out {out} is no file of embed-text and is not replaced; choose another name") from error


def read_prompts(path: Path) -> dict[str, int]:
    """The prompts of a file, one a line, each once, with the number of its line. Raises UserError where there is none."""
    if not path.is_file():
        raise MissingFile(f"there is no file {path}: give a text file with a prompt a line")
    lines = {}
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if prompt := one_line(line):
            lines.setdefault(prompt, number)
    if not lines:
        raise UserError(f"{path} holds no prompt: give one a line")
    return lines
