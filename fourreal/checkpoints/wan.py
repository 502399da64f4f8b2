"""The map of names from diffusers' `WanTransformer3DModel` to `VideoDiT`.

A torch linear layer keeps its weight as [out, in], ours is [in, out]. The patch embedding is a convolution there and a
linear map over patches in the order (c, pt, ph, pw) here. Our blocks are stacked on a leading axis. What Wan does not
have (context table, given vector, other conditions) is zero, so that the converted model computes what Wan computes.

A trap: the affine norm before cross-attention is `norm2` in diffusers and `norm3` in the original files.
"""

from collections.abc import Mapping

import numpy as np
from einops import EinopsError, rearrange
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


def from_diffusers(state: Mapping[str, np.ndarray], config: VideoDiTConfig) -> dict:
    """A Wan transformer's tensors as the nested parameter dict of `VideoDiT(config)`, in the tensors' own dtype.

    Every tensor is used exactly once. Raises ValueError, naming them, for tensors that are missing or not part of the
    model (image-to-video checkpoints have some), and for one whose shape the config does not predict.
    """
    text = next((condition for condition in config.conditions if isinstance(condition, Text)), None)
    if text is None:
        raise UserError(
            "Wan has text cross-attention, the config has none: list conditions.Text() (width 4096 as released)"
        )
    if config.prediction != "u":
        raise UserError(f"Wan predicts velocities, the config says '{config.prediction}': set prediction='u'")
    axes, table = _sizes(config, text.width), dict(_OTHERS)
    for ours, (theirs, inputs, outputs) in _LINEARS.items():
        table[f"{ours}.kernel"] = (f"{theirs}.weight", f"{outputs} {inputs} -> {inputs} {outputs}")
        table[f"{ours}.bias"] = (f"{theirs}.bias", f"{outputs} -> {outputs}")
    names = {ours: _layer_names(theirs, config.depth) for ours, (theirs, _) in table.items()}
    _check_names(state, {name for layer_names in names.values() for name in layer_names}, config.depth)

    shapes = nnx.eval_shape(lambda: VideoDiT(config, rngs=nnx.Rngs(0)))
    parameters = {}
    for name, shape in traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(shapes)), sep=".").items():
        if name not in table:
            _insert(parameters, name, np.zeros(shape.shape, np.float32))
    for ours, (theirs, pattern) in table.items():
        arrays = [_convert(name, state[name], pattern, axes) for name in names[ours]]
        _insert(parameters, ours, np.stack(arrays) if "{}" in theirs else arrays[0])
    return parameters


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


def _check_names(state: Mapping[str, np.ndarray], expected: set[str], depth: int) -> None:
    for problem, names in (("misses", expected - set(state)), ("has unknown", set(state) - expected)):
        if names:
            first = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f"the checkpoint {problem} {len(names)} tensors ({first}): expected the names of diffusers' "
                f"WanTransformer3DModel, text to video, with {depth} layers; check the config and the file"
            )


def _convert(name: str, array: np.ndarray, pattern: str, axes: Mapping[str, int]) -> np.ndarray:
    used = {axis: axes[axis] for axis in pattern.split("->")[0].split() if axis in axes}
    try:
        return rearrange(np.asarray(array), pattern, **used)
    except EinopsError:
        expected = [axes.get(axis, 1) for axis in pattern.split("->")[0].split()]
        raise UserError(f"tensor {name} has shape {list(array.shape)}: the config expects {expected}") from None


def _insert(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
