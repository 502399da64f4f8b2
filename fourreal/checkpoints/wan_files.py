"""Wan's transformers on disk: diffusers' folders and Wan's original ones become folders of weights, and back.

Both hold safetensors, one file or several with an index, and a `config.json`. A folder of weights says the same with our names,
each layer's tensors stacked. Tensors are read and written one at a time: nothing but one of them, and its turned copy, is in
memory. What numbers they are in (fp32, bf16, fp16) stays, unless another precision is asked for.
"""

import contextlib
import dataclasses
import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint, weights_folder
from fourreal.checkpoints.upgrade import stored
from fourreal.checkpoints.wan import check_names, check_shape, lacking, pieces, renamed_original
from fourreal.checkpoints.weights import CONFIG, WEIGHTS, StoredTensor, fit_weights, open_weights, write_tensors
from fourreal.codecs import Codec, PixelCodec
from fourreal.codecs.wan import WAN_2_1, WAN_2_2, Wan22Codec, WanCodec, WanVAEConfig
from fourreal.conditions import Text
from fourreal.errors import MissingFile, UserError
from fourreal.host.streamed import Streamed, write_streamed
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig
from fourreal.nn.low_rank import DOWN, UP
from fourreal.serialize import read_json, to_json

TRANSFORMER, AUTOENCODER = "transformer", "vae"  # their folders in a pipeline's
STEPS = 30  # denoising steps by default; Wan takes 50
INDEX, SINGLE = "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"
BASE = "base."  # what the names of a base begin with in a folder of weights
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# channels of the latents -> (times, height, width) of those that the released model was trained on, shift of the noise levels
RELEASED = {16: ((21, 60, 104), 3.0), 48: ((31, 44, 80), 5.0)}


class WanFiles(NamedTuple):
    """A transformer's folder, open."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, "WanTensor"]
    """by diffusers' names"""


@dataclasses.dataclass(frozen=True)
class WanTensor:
    """A tensor in one of its files."""

    name: str
    """in the file"""
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """All of it. Raises UserError for numbers that are not finite."""
        array = self.load()
        if not np.isfinite(array).all():
            raise UserError(f"{self.path}: the tensor {self.name} holds values that are not finite; use other weights")
        return array


class Report(NamedTuple):
    """What became of the tensors that were read."""

    used: int
    left_out: tuple[str, ...]
    zeros: tuple[str, ...]
    """what the other side has not, and which is zero"""

    def __str__(self) -> str:
        words = [f"{self.used} tensors used, 0 missing"]
        words += [f"left out as asked: {', '.join(self.left_out)}"] if self.left_out else []
        words += [f"zero, as Wan has none: {', '.join(self.zeros)}"] if self.zeros else []
        return "; ".join(words)


@contextlib.contextmanager
def open_wan(folder: str | Path) -> Iterator[WanFiles]:
    """A transformer's folder, or the pipeline's that holds it. Raises UserError for what is missing or broken."""
    folder = Path(folder)
    if (folder / TRANSFORMER / CONFIG).is_file():
        folder = folder / TRANSFORMER
    if not (folder / CONFIG).is_file():
        raise MissingFile(
            f"{folder} holds no {CONFIG}: give the folder of a Wan transformer, or of a pipeline with one"
        )
    config = _json(folder / CONFIG)
    with contextlib.ExitStack() as stack:
        tensors = {}
        for path in _files(folder):
            for tensor in _open(path, stack):
                name = renamed_original(tensor.name) if "dim" in config else tensor.name
                if name in tensors:
                    raise UserError(f"{path} and {tensors[name].path} both hold {tensor.name}: keep one of them")
                tensors[name] = tensor
        yield WanFiles(folder, config, tensors)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): copy the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}: expected an object, copy the file again")
    return values


def _files(folder: Path) -> list[Path]:
    """The files that hold the tensors: those of the index, or the one or the few that there are."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise MissingFile(f"{folder} holds no safetensors: download the folder as a whole")
        return found
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{index} has no weight_map of names: copy the file again")
    found = [folder / Path(name).name for name in sorted(set(listed.values()))]
    for path in found:
        if not path.is_file():
            raise MissingFile(f"{folder} lacks {path.name}, which {index.name} lists: download it, too")
    return found


def _open(path: Path, stack: contextlib.ExitStack) -> Iterator[WanTensor]:
    try:
        file = stack.enter_context(safe_open(path, "numpy"))
    except SafetensorError as error:
        raise UserError(f"{path} is broken ({error}): copy the file again") from error
    for name in file.keys():  # noqa: SIM118, it is no dict
        part = file.get_slice(name)
        if (code := part.get_dtype()) not in DTYPES:
            raise UserError(f"{path}: the tensor {name} is {code}, expected F32, BF16 or F16; convert it")
        yield WanTensor(name, path, tuple(part.get_shape()), DTYPES[code], lambda name=name: file.get_tensor(name))


def base_config(values: Mapping[str, Any], source: Any = "the config") -> VideoDiTConfig:
    """The base of a `config.json`, diffusers' or the original. Raises UserError for a model of another kind."""
    original = "dim" in values
    names = ("dim", "num_layers", "num_heads", "ffn_dim", "in_dim", "freq_dim")
    if not original:
        names = ("attention_head_dim", "num_layers", "num_attention_heads", "ffn_dim", "in_channels", "freq_dim")
    for name in names:
        if type(values.get(name)) is not int:
            raise UserError(
                f"{source}: {name} is {values.get(name)}, expected a whole number: give a Wan transformer's"
            )
    width, depth, heads, mlp, channels, frequency = (values[name] for name in names)
    plain = {
        "model_type": ("t2v", "ti2v", None),
        "image_dim": (None,),
        "added_kv_proj_dim": (None,),
        "cross_attn_norm": (True, None),
        "qk_norm": ("rms_norm_across_heads", True, None),
        "eps": (1e-6, None),
        "out_channels": (channels, None),
        "out_dim": (channels, None),
    }
    for name, allowed in plain.items():
        if values.get(name) not in allowed:
            raise UserError(
                f"{source}: {name} is {values[name]}: only text-to-video transformers fit, of {name} {allowed[0]}"
            )
    return VideoDiTConfig(
        width=width if original else width * heads,
        depth=depth,
        heads=heads,
        mlp_width=mlp,
        patch=tuple(values.get("patch_size", (1, 2, 2))),
        channels=channels,
        conditions=(Text(width=values.get("text_dim", 4096)),),
        frequency_width=frequency,
        prediction="u",
        dtype="bfloat16",
    )


def convert(folder: str | Path, out: Path, dtype: str | None = None, leave_out: Sequence[str] = ()) -> Report:
    """Writes the folder of weights of a Wan transformer, a base for `--init-from`, to `out`, which is there.

    `dtype`: float32 or bfloat16; None: as they are. `leave_out`: patterns of names that may be passed over. Raises UserError,
    by name, for tensors that are missing, unknown, misshapen or not finite.
    """
    with open_wan(folder) as files:
        config = base_config(files.config, files.folder / CONFIG)
        table = pieces(config)
        expected = {name for piece in table.values() for name in piece.theirs}
        odd = _left_out(set(files.tensors) - expected, leave_out)
        check_names(set(files.tensors) - set(odd), table, config.depth)
        tensors = {}
        for ours, piece in table.items():
            theirs = [files.tensors[name] for name in piece.theirs]
            for tensor in theirs:
                check_shape(tensor.name, tensor.shape, piece)
            kinds = {tensor.dtype for tensor in theirs}
            kind = DTYPES[dtype] if dtype else kinds.pop() if len(kinds) == 1 else DTYPES["float32"]
            shape = piece.ours(np.empty(piece.shape, np.bool_)).shape
            tensors[BASE + ours] = Streamed(
                (len(theirs), *shape) if piece.stacked else shape,
                kind,
                lambda theirs=theirs, piece=piece: (piece.ours(tensor.read()) for tensor in theirs),
            )
        zeros = lacking(config)
        tensors |= {
            BASE + name: Streamed(shape, DTYPES["float32"], lambda shape=shape: [np.zeros(shape, np.float32)])
            for name, shape in zeros.items()
        }
        write_streamed(out / WEIGHTS, tensors)
    (times, height, width), shift = RELEASED.get(config.channels, ((1, 2 * config.patch[1], 2 * config.patch[1]), 1.0))
    codec = codec_of(files.folder.parent / AUTOENCODER, config.channels)
    merged, down, across = codec.factors
    times, size = 1 + merged * (times - 1), (height * down, width * across)
    spec = ModelSpec(config, GridDiTConfig("base"), 1, times, size, shift, codec, STEPS)
    (out / CONFIG).write_text(json.dumps(stored(to_json(spec)), indent=2) + "\n")
    return Report(len(expected), tuple(odd), tuple(zeros))


def codec_of(folder: Path, channels: int) -> Codec:
    """The codec of a pipeline's autoencoder in `folder`, or of the released one where there is none; views are videos, as for
    the base. Raises UserError for one whose latents have other channels."""
    if (folder / CONFIG).is_file():
        network = WanVAEConfig.from_diffusers(read_json(folder / CONFIG))
        if network.z_dim != channels:
            raise UserError(
                f"{folder} has latents of {network.z_dim} channels, the transformer takes {channels}: mend the folder"
            )
        kind = Wan22Codec if network.is_residual else WanCodec
        return kind(weights=str(folder.resolve()), mode="per_view", network=network)
    released = {WAN_2_1.z_dim: WanCodec, WAN_2_2.z_dim: Wan22Codec}
    return released[channels](mode="per_view") if channels in released else PixelCodec()


def _left_out(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return sorted(name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def export(checkpoint: str | Path, out: Path, dtype: str | None = None, leave_out: Sequence[str] = ()) -> Report:
    """Writes the base of a checkpoint, low-rank additions merged, as diffusers' transformer folder to `out`, which is there.

    `dtype` is as in `convert`. Raises UserError for a base that is no Wan's, and, by name, for parameters that Wan has not,
    unless they are zero, so that they change nothing, or match a pattern of `leave_out`.
    """
    folder, spec = weights_folder(checkpoint), describe_checkpoint(checkpoint)
    table = pieces(dataclasses.replace(spec.model, lora_rank=0))
    with open_weights(folder) as found:
        added = {name for name in found if name.endswith((DOWN, UP))}
        others = {name for name in found if name.removeprefix(BASE) not in table} - added
        odd = _left_out(others, leave_out)
        zeros = sorted(others - set(odd))
        for name in zeros:
            if np.any(found[name][...]):
                raise UserError(
                    f"{folder}: Wan has no {name}, and it is not zero: its base alone computes something else. Name it with "
                    "--leave-out if that is meant"
                )
        tensors = {}
        for ours, piece in table.items():
            tensor = found.get(BASE + ours)
            if tensor is None:
                raise UserError(f"{folder} lacks the tensor {BASE + ours}: take weights and config of the same model")
            for layer, name in enumerate(piece.theirs):
                index = layer if piece.stacked else ...
                tensors[name] = Streamed(
                    piece.shape,
                    DTYPES[dtype or tensor.slices.get_dtype()],
                    lambda ours=ours, index=index, piece=piece: [piece.back(_merged(found, spec.model, ours, index))],
                )
        write_streamed(out / SINGLE, tensors, {"format": "pt"})
    (out / CONFIG).write_text(json.dumps(diffusers_config(spec.model), indent=2) + "\n")
    return Report(len(tensors), tuple(odd), tuple(zeros))


def _merged(found: Mapping[str, StoredTensor], config: VideoDiTConfig, ours: str, index: Any) -> np.ndarray:
    """A parameter (of a layer, if it is stacked) with its low-rank addition in it, if it has one."""
    array, map_ = found[BASE + ours][index], BASE + ours.removesuffix("kernel")
    if not ours.endswith(".kernel") or map_ + DOWN not in found:
        return array
    return array + config.lora_scale * found[map_ + DOWN][index] @ found[map_ + UP][index]


def export_lora(checkpoint: str | Path, out: Path) -> int:
    """Writes the low-rank additions of a checkpoint's base to `out`, which is there, as diffusers' pipelines load them.

    A is our D turned, B our U turned and scaled, so that their own scale is 1. Returns how many maps have one; raises UserError
    for a checkpoint without any.
    """
    folder, spec = weights_folder(checkpoint), describe_checkpoint(checkpoint)
    table, tensors = pieces(dataclasses.replace(spec.model, lora_rank=0)), {}
    with open_weights(folder) as found:
        for ours, piece in table.items():
            map_ = BASE + ours.removesuffix("kernel")
            if not ours.endswith(".kernel") or map_ + DOWN not in found:
                continue
            for layer, name in enumerate(piece.theirs):
                map_there = f"{TRANSFORMER}.{name.removesuffix('.weight')}"
                tensors[f"{map_there}.lora_A.weight"] = np.ascontiguousarray(found[map_ + DOWN][layer].T)
                tensors[f"{map_there}.lora_B.weight"] = np.ascontiguousarray(
                    spec.model.lora_scale * found[map_ + UP][layer].T
                )
    if not tensors:
        raise UserError(f"{folder} has no low-rank additions: train some with --model.lora-rank 16 --trains lora")
    write_tensors(out / LORA, tensors, {"format": "pt"})
    return len(tensors) // 2


def diffusers_config(config: VideoDiTConfig) -> dict[str, Any]:
    """What diffusers' `WanTransformer3DModel` reads of a base."""
    text = next(condition for condition in config.conditions if isinstance(condition, Text))
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None,
        "attention_head_dim": config.head_size,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": config.mlp_width,
        "freq_dim": config.frequency_width,
        "image_dim": None,
        "in_channels": config.channels,
        "num_attention_heads": config.heads,
        "num_layers": config.depth,
        "out_channels": config.channels,
        "patch_size": list(config.patch),
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": text.width,
    }


def load_base(folder: str | Path) -> VideoDiT:
    """The base of a folder of weights, as a module: `load_base("wan")(clip, sigma, given, {"text": features})`."""
    spec = describe_checkpoint(folder)
    model = nnx.eval_shape(lambda: VideoDiT(spec.model, rngs=nnx.Rngs(0)))
    with open_weights(weights_folder(folder)) as found:
        own = {name.removeprefix(BASE): tensor for name, tensor in found.items() if name.startswith(BASE)}
        params = fit_weights(own, nnx.to_pure_dict(nnx.state(model)), str(folder))
        nnx.update(model, jax.tree.map(lambda tensor: jnp.asarray(tensor[...]), params))
    return model
