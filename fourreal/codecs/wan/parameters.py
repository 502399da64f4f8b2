"""The parameters of Wan's autoencoders: their names and shapes, from diffusers' files or at random.

A torch convolution keeps its weight as [out, in, time, height, width], ours is [time, height, width, in, out], and a matrix
[in, out] for a kernel of a single pixel. Both generations have the same tree here, while diffusers lists the blocks of Wan
2.1's encoder flat (`encoder.down_blocks.0`, `.1`, ...) and Wan 2.2's by resolution (`encoder.down_blocks.0.resnets.0`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from fourreal.codecs.wan.config import Stage, WanVAEConfig
from fourreal.codecs.wan.layers import Params
from fourreal.errors import MissingFile, UserError
from fourreal.serialize import differences, read_json, to_json

CONFIG = "config.json"


class Entry(NamedTuple):
    """A parameter: its shape and name in diffusers, and how its axes become ours."""

    theirs: str
    shape: tuple[int, ...]
    pattern: str


Table = dict[str, Entry]
"""by our dotted name"""
CUBE, COLUMN, SQUARE = (3, 3, 3), (3, 1, 1), (3, 3)  # kernels over time, height and width, or height and width


def parameter_table(config: WanVAEConfig) -> Table:
    """Every parameter of the network."""
    z, table = config.z_dim, {}
    encoder, decoder = config.encoder_stages(), config.decoder_stages()
    _conv(table, "encoder.conv_in", "encoder.conv_in", CUBE, config.patch_channels, encoder[0].width_in)
    flat = 0  # position in Wan 2.1's list
    for i, stage in enumerate(encoder):
        parts = [f"encoder.down_blocks.{flat + k}" for k in range(stage.blocks + 1)]
        if config.is_residual:
            inside = f"encoder.down_blocks.{i}"
            parts = [*(f"{inside}.resnets.{j}" for j in range(stage.blocks)), f"{inside}.downsampler"]
        flat += stage.blocks + stage.space
        _stage(table, f"encoder.stages.{i}", parts, stage, time_width=stage.width)
    _middle(table, "encoder", encoder[-1].width_out)
    _head(table, "encoder", encoder[-1].width_out, 2 * z)
    _conv(table, "quant_conv", "quant_conv", (1, 1, 1), 2 * z, 2 * z)
    _conv(table, "post_quant_conv", "post_quant_conv", (1, 1, 1), z, z)
    _conv(table, "decoder.conv_in", "decoder.conv_in", CUBE, z, decoder[0].width_in)
    _middle(table, "decoder", decoder[0].width_in)
    for i, stage in enumerate(decoder):
        inside = f"decoder.up_blocks.{i}"
        upsampler = "upsampler" if config.is_residual else "upsamplers.0"
        parts = [*(f"{inside}.resnets.{j}" for j in range(stage.blocks)), f"{inside}.{upsampler}"]
        _stage(table, f"decoder.stages.{i}", parts, stage, time_width=2 * stage.width)
    _head(table, "decoder", decoder[-1].width_out, config.patch_channels)
    return table


def _conv(table: Table, ours: str, theirs: str, kernel: tuple[int, ...], inputs: int, outputs: int) -> None:
    axes = "t h w" if len(kernel) == 3 else "h w"
    pattern = f"o i {axes} -> {axes} i o"
    if set(kernel) == {1}:
        pattern = "o i 1 1 1 -> i o" if len(kernel) == 3 else "o i 1 1 -> i o"
    table[f"{ours}.kernel"] = Entry(f"{theirs}.weight", (outputs, inputs, *kernel), pattern)
    table[f"{ours}.bias"] = Entry(f"{theirs}.bias", (outputs,), "o -> o")


def _norm(table: Table, ours: str, theirs: str, width: int, axes: int = 3) -> None:
    pattern = f"c {' '.join('1' * axes)} -> c"
    table[f"{ours}.gamma"] = Entry(f"{theirs}.gamma", (width, *[1] * axes), pattern)


def _block(table: Table, ours: str, theirs: str, inputs: int, outputs: int) -> None:
    _norm(table, f"{ours}.norm1", f"{theirs}.norm1", inputs)
    _conv(table, f"{ours}.conv1", f"{theirs}.conv1", CUBE, inputs, outputs)
    _norm(table, f"{ours}.norm2", f"{theirs}.norm2", outputs)
    _conv(table, f"{ours}.conv2", f"{theirs}.conv2", CUBE, outputs, outputs)
    if inputs != outputs:
        _conv(table, f"{ours}.shortcut", f"{theirs}.conv_shortcut", (1, 1, 1), inputs, outputs)


def _stage(table: Table, ours: str, theirs: list[str], stage: Stage, time_width: int) -> None:
    """`theirs`: of every block, then of the resampling; `time_width`: outputs of its convolution over time."""
    for j in range(stage.blocks):
        _block(table, f"{ours}.blocks.{j}", theirs[j], stage.width if j else stage.width_in, stage.width)
    if stage.space:
        _conv(table, f"{ours}.resample.conv", f"{theirs[-1]}.resample.1", SQUARE, stage.width, stage.width_out)
    if stage.time:
        _conv(table, f"{ours}.resample.time_conv", f"{theirs[-1]}.time_conv", COLUMN, stage.width, time_width)


def _middle(table: Table, side: str, width: int) -> None:
    for j in range(2):
        _block(table, f"{side}.middle.blocks.{j}", f"{side}.mid_block.resnets.{j}", width, width)
    ours, theirs = f"{side}.middle.attention", f"{side}.mid_block.attentions.0"
    _norm(table, f"{ours}.norm", f"{theirs}.norm", width, axes=2)
    _conv(table, f"{ours}.qkv", f"{theirs}.to_qkv", (1, 1), width, 3 * width)
    _conv(table, f"{ours}.out", f"{theirs}.proj", (1, 1), width, width)


def _head(table: Table, side: str, width: int, outputs: int) -> None:
    _norm(table, f"{side}.norm_out", f"{side}.norm_out", width)
    _conv(table, f"{side}.conv_out", f"{side}.conv_out", CUBE, width, outputs)


def from_diffusers(state: Mapping[str, np.ndarray], config: WanVAEConfig) -> Params:
    """The tensors of diffusers' `AutoencoderKLWan` as our nested dict, in their own dtype.

    Every tensor is used exactly once. Raises UserError, naming them, for tensors that are missing, not part of the network, or
    of another shape than the config says.
    """
    table = parameter_table(config)
    expected = {entry.theirs for entry in table.values()}
    for problem, names in (("misses", expected - set(state)), ("has unknown", set(state) - expected)):
        if names:
            first = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"the autoencoder {problem} {len(names)} tensors ({first}): expected the names of diffusers' "
                "AutoencoderKLWan as the codec's config says; take weights and codec of one generation"
            )
    flat = {ours: _convert(state[entry.theirs], entry) for ours, entry in table.items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def _convert(tensor: np.ndarray, entry: Entry) -> np.ndarray:
    tensor = np.asarray(tensor)
    if tensor.shape != entry.shape:
        raise UserError(
            f"tensor {entry.theirs} has shape {list(tensor.shape)}: the codec's config expects {list(entry.shape)}"
        )
    return np.ascontiguousarray(rearrange(tensor, entry.pattern))


def random_parameters(config: WanVAEConfig, seed: int = 0) -> Params:
    """Fresh parameters, fp32: kernels of variance 1 / inputs, zero biases, norms of ones."""
    flat = {}
    for i, (ours, entry) in enumerate(parameter_table(config).items()):
        theirs, axes = (side.split() for side in entry.pattern.split("->"))
        sizes = dict(zip(theirs, entry.shape, strict=True))
        shape = [sizes[axis] for axis in axes]
        if ours.endswith("kernel"):
            key = jax.random.fold_in(jax.random.key(seed), i)
            flat[ours] = jax.random.normal(key, shape) / np.prod(shape[:-1]) ** 0.5
        else:
            flat[ours] = jnp.full(shape, float(ours.endswith("gamma")))
    return traverse_util.unflatten_dict(flat, sep=".")


def read_parameters(folder: str | Path, config: WanVAEConfig) -> Params:
    """The parameters of a folder as diffusers writes it (`config.json` and safetensors, in any number of files), fp32.

    Raises UserError for a file or a tensor that is missing, broken or not finite, and where the folder's config differs.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise MissingFile(f"{folder} holds no {CONFIG}: expected diffusers' folder of the autoencoder, often named vae")
    theirs = WanVAEConfig.from_diffusers(read_json(folder / CONFIG))
    for name, (said, held) in differences(to_json(config), to_json(theirs)).items():
        raise UserError(f"{folder / CONFIG}: {name} is {held}, the codec's is {said}; take the codec of its generation")
    state = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = _read_tensors(path)
        if twice := sorted(set(state) & set(tensors)):
            raise UserError(f"{folder}: two files hold {twice[0]}; keep the files of one precision")
        state |= tensors
    return from_diffusers(state, config)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    try:
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                tensors[name] = file.get_tensor(name).astype(np.float32)
                if not np.isfinite(tensors[name]).all():
                    raise UserError(f"{path}: the tensor {name} holds values that are not finite; use other weights")
    except SafetensorError as error:
        raise UserError(f"{path} is broken ({error}): copy the file again") from error
    return tensors
