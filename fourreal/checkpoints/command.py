"""The verb `convert wan`: pretrained transformers of Wan 2.1 and 2.2 as a base, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fourreal.errors import FileInTheWay, UserError
from fourreal.host.folders import check_creatable, whole_folder


@dataclass(frozen=True)
class ConvertWan:
    """Makes a base for `train --init-from` of a Wan transformer, or with --export a diffusers folder of a checkpoint's base.

    SOURCE is a folder of diffusers (a pipeline's or its transformer's) or of Wan's original files; from text to video, so
    2.1 of 1.3 B and 14 B, and 2.2 of 5 B. With --export it is a checkpoint, a run's folder or a folder of weights.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """what is read"""
    out: Annotated[str, tyro.conf.arg(metavar="PATH")]
    """folder to write"""
    export: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """write diffusers' form"""
    lora: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """with --export: write the low-rank additions alone, as diffusers loads them; else they are merged"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """precision of what is written; none: that of the source"""
    leave_out: tuple[str, ...] = ()
    """names, with * for any letters, that may stay behind: tensors of the source that the other side has not"""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace the folder if it exists"""

    def run(self) -> None:
        """Writes the whole folder or nothing."""
        from fourreal.checkpoints.wan_files import LORA, convert, export, export_lora
        from fourreal.checkpoints.weights import CONFIG

        if self.lora and not self.export:
            raise UserError("--lora says what --export writes: give both")
        out = Path(self.out).expanduser()
        check_creatable(out)
        if out.exists() and not self.overwrite:
            raise FileInTheWay(f"--out {out} exists; add --overwrite to replace it, or choose another name")
        ours = out.is_dir() and (not any(out.iterdir()) or any((out / name).is_file() for name in (CONFIG, LORA)))
        if out.exists() and not ours:
            raise FileInTheWay(f"--out {out} is no folder of weights and is not replaced; choose another name")
        with whole_folder(out) as partial:
            partial.mkdir()
            source = Path(self.source).expanduser()
            if self.lora:
                report = f"low-rank additions of {export_lora(source, partial)} maps"
            else:
                report = (export if self.export else convert)(source, partial, self.dtype, self.leave_out)
        print(f"{report}\n{out}")
