"""The map of names between diffusers' `WanTransformer3DModel`, or Wan's original files, and `VideoDiT`.

A torch linear layer keeps its weight as [out, in], ours is [in, out]. The patch embedding is a convolution there and a
linear map over patches in the order (c, pt, ph, pw) here. Our blocks are stacked on a leading axis. What Wan does not
have (context table, given vector, other conditions) is zero, so that the converted model computes what Wan computes.

A trap: the affine norm before cross-attention is `norm2` in diffusers and `norm3` in the original files.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from flax import nnx, traverse_util

from fourreal.conditions import Text
from fourreal.errors import UserError
from fourreal.models.video_dit import VideoDiT, VideoDiTConfig

# ours -> (diffusers, input axis, output axis); axes are named in `_sizes`
_LINEARS = {
    "time_embed.in_": ("condition_embedder.time_embedder.linear_1", "frequency", "width"),
    "time_embed.out": ("condition_embedder.time_embedder.linear_2", "width_in", "width"),
    "time_projection": ("condition_embedder.time_proj", "width", "six_width"),
    "conditions.text.embed.in_": ("condition_embedder.text_embedder.linear_1", "text", "width"),
    "conditions.text.embed.out": ("condition_embedder.text_embedder.linear_2", "width_in", "width"),
    "head.out": ("proj_out", "width", "patch"),
    "blocks.attention.query": ("blocks.{}.attn1.to_q", "width_in", "width"),
    "blocks.attention.key": ("blocks.{}.attn1.to_k", "width_in", "width"),
    "blocks.attention.value": ("blocks.{}.attn1.to_v", "width_in", "width"),
    "blocks.attention.out": ("blocks.{}.attn1.to_out.0", "width_in", "width"),
    "blocks.cross.text.query": ("blocks.{}.attn2.to_q", "width_in", "width"),
    "blocks.cross.text.key": ("blocks.{}.attn2.to_k", "width_in", "width"),
    "blocks.cross.text.value": ("blocks.{}.attn2.to_v", "width_in", "width"),
    "blocks.cross.text.out": ("blocks.{}.attn2.to_out.0", "width_in", "width"),
    "blocks.mlp.in_": ("blocks.{}.ffn.net.0.proj", "width", "mlp"),
    "blocks.mlp.out": ("blocks.{}.ffn.net.2", "mlp", "width"),
}
# ours -> (diffusers, how its axes become ours)
_OTHERS = {
    "patch_embed.kernel": ("patch_embedding.weight", "width c pt ph pw -> (c pt ph pw) width"),
    "patch_embed.bias": ("patch_embedding.bias", "width -> width"),
    "head.modulation": ("scale_shift_table", "1 two width -> two width"),
    "blocks.modulation": ("blocks.{}.scale_shift_table", "1 six width -> six width"),
    "blocks.cross.text.norm.scale": ("blocks.{}.norm2.weight", "width -> width"),
    "blocks.cross.text.norm.bias": ("blocks.{}.norm2.bias", "width -> width"),
    "blocks.attention.query_norm.scale": ("blocks.{}.attn1.norm_q.weight", "width -> width"),
    "blocks.attention.key_norm.scale": ("blocks.{}.attn1.norm_k.weight", "width -> width"),
    "blocks.cross.text.query_norm.scale": ("blocks.{}.attn2.norm_q.weight", "width -> width"),
    "blocks.cross.text.key_norm.scale": ("blocks.{}.attn2.norm_k.weight", "width -> width"),
}


# parts of Wan's original names -> diffusers'
_ORIGINAL = (
    (r"^(text|time)_embedding\.0\.", r"condition_embedder.\1_embedder.linear_1."),
    (r"^(text|time)_embedding\.2\.", r"condition_embedder.\1_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"(\.attn\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attn\d)\.o\.", r"\1.to_out.0."),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
)


class Piece(NamedTuple):
    """How one of our parameters is made of Wan's tensors."""

    theirs: tuple[str, ...]
    """their names, one a layer if it is stacked"""
    stacked: bool
    shape: tuple[int, ...]
    """of one of theirs"""
    pattern: str
    """for einops, from theirs to ours"""
    axes: dict[str, int]
    """sizes of the pattern's axes"""

    def ours(self, array: np.ndarray) -> np.ndarray:
        """One of their tensors, of the right shape, in our axes."""
        return rearrange(array, self.pattern, **self.axes)

    def back(self, array: np.ndarray) -> np.ndarray:
        """One of ours (of a layer, if it is stacked) in their axes."""
        there, here = self.pattern.split(" -> ")
        return rearrange(array, f"{here} -> {there}", **self.axes)


def renamed_original(name: str) -> str:
    """Diffusers' name of a tensor of Wan's original files."""
    for pattern, new in _ORIGINAL:
        name = re.sub(pattern, new, name)
    return name


def pieces(config: VideoDiTConfig) -> dict[str, Piece]:
    """By the names of `VideoDiT(config)`, what is made of Wan's tensors. Raises UserError for a config of another model."""
    text = next((condition for condition in config.conditions if isinstance(condition, Text)), None)
    if text is None:
        raise UserError(
            "Wan has text cross-attention, the config has none: list conditions.Text() (width 4096 as released)"
        )
    if config.lora_rank:
        raise UserError(
            "Wan has no low-rank additions: convert without, and begin them with --init-from and --model.lora-rank"
        )
    if config.prediction != "u":
        raise UserError(f"Wan predicts velocities, the config says '{config.prediction}': set prediction='u'")
    sizes, table = _sizes(config, text.width), dict(_OTHERS)
    for ours, (theirs, inputs, outputs) in _LINEARS.items():
        table[f"{ours}.kernel"] = (f"{theirs}.weight", f"{outputs} {inputs} -> {inputs} {outputs}")
        table[f"{ours}.bias"] = (f"{theirs}.bias", f"{outputs} -> {outputs}")
    found = {}
    for ours, (theirs, pattern) in table.items():
        names = pattern.split(" -> ")[0].split()
        axes = {axis: sizes[axis] for axis in names if axis in sizes}
        shape = tuple(sizes.get(axis, 1) for axis in names)
        found[ours] = Piece(tuple(_layer_names(theirs, config.depth)), "{}" in theirs, shape, pattern, axes)
    return found


def check_names(names: set[str], table: Mapping[str, Piece], depth: int) -> None:
    """Raises UserError for tensors that are missing, or that the model does not know."""
    expected = {name for piece in table.values() for name in piece.theirs}
    for problem, odd in (("misses", expected - names), ("has unknown", names - expected)):
        if odd:
            first = ", ".join(sorted(odd)[:3]) + (", ..." if len(odd) > 3 else "")
            raise UserError(
                f"the checkpoint {problem} {len(odd)} tensors ({first}): expected the names of diffusers' "
                f"WanTransformer3DModel, text to video, with {depth} layers; check the config and the file"
            )


def check_shape(name: str, shape: tuple[int, ...], piece: Piece) -> None:
    """Raises UserError for a tensor of another shape than the config predicts."""
    if tuple(shape) != piece.shape:
        raise UserError(f"tensor {name} has shape {list(shape)}: the config expects {list(piece.shape)}")


def from_diffusers(state: Mapping[str, np.ndarray], config: VideoDiTConfig) -> dict[str, Any]:
    """A Wan transformer's tensors as the nested parameter dict of `VideoDiT(config)`, in the tensors' own dtype.

    Every tensor is used exactly once. Raises ValueError, naming them, for tensors that are missing or not part of the
    model (image-to-video checkpoints have some), and for one whose shape the config does not predict.
    """
    table = pieces(config)
    check_names(set(state), table, config.depth)
    parameters = {name: np.zeros(shape, np.float32) for name, shape in lacking(config).items()}
    for ours, piece in table.items():
        for name in piece.theirs:
            check_shape(name, np.shape(state[name]), piece)
        arrays = [piece.ours(np.asarray(state[name])) for name in piece.theirs]
        parameters[ours] = np.stack(arrays) if piece.stacked else arrays[0]
    return traverse_util.unflatten_dict(parameters, sep=".")


def lacking(config: VideoDiTConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of what `VideoDiT(config)` has and Wan has not, by name: zeros, so that it computes what Wan computes."""
    shapes = nnx.eval_shape(lambda: VideoDiT(config, rngs=nnx.Rngs(0)))
    names, table = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(shapes)), sep="."), pieces(config)
    return {name: leaf.shape for name, leaf in names.items() if name not in table}


def _sizes(config: VideoDiTConfig, text: int) -> dict[str, int]:
    pt, ph, pw = config.patch
    return {
        "width": config.width,
        "width_in": config.width,
        "six_width": 6 * config.width,
        "mlp": config.mlp_width,
        "text": text,
        "frequency": config.frequency_width,
        "patch": pt * ph * pw * config.channels,
        "c": config.channels,
        "pt": pt,
        "ph": ph,
        "pw": pw,
        "two": 2,
        "six": 6,
    }


def _layer_names(name: str, depth: int) -> list[str]:
    return [name.format(layer) for layer in range(depth)] if "{}" in name else [name]
