"""`VideoDiT`: a video diffusion transformer on clips, laid out as Wan 2.1, so that its weights load by a map of names.

    tokens = Linear(patches(x)) [+ given] [+ Linear(patches(hints))] [+ Linear(patches(rays of the cameras))]
    temb   = MLP(sinusoid(1000 sigma))                          one vector a frame
    six    = Linear(SiLU(temb)) [+ context row]                 modulation of every block, plus a table per block
    out    = unpatch(Linear(LN(tokens) (1 + scale) + shift)),   (shift, scale) = table + temb

Ours, zero-initialised, so that a fresh model equals the plain one: the context table (what kind of clip this is), the
`given` vector (which frames are clean inputs; their sigma is 0), linear maps of the hints (the nearest given frames, as
pictures) and of the cameras (see `cameras.py`) into the tokens and, in an x0-model, a gate per pixel that copies at the end:

    out = out + gate_0 x + gate_1 hint_view + gate_2 hint_time,    gates = Linear(head's modulated tokens)

Much of a grid stands still, and at low noise x is nearly the answer: a narrow model passes neither through its tokens well.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from fourreal import grid as axes
from fourreal.grid import CONTEXTS
from fourreal.models import layers
from fourreal.models.attention import CROSS_NAME, SELF_NAME, clip_attention, cross_attention
from fourreal.models.cameras import RAY, Cameras, plucker_rays
from fourreal.models.kernels import XLA, Kernel
from fourreal.parallel.activations import check_heads, place
from fourreal.parallel.layout import gather_layer

Prediction = Literal["x0", "u"]
Precision = Literal["float32", "bfloat16"]
Remat = Literal["none", "matmuls", "attention_out", "full", "offload"]
MOST = 2**20  # of anything that is counted: far above what fits a device
INPUT_NAME = "layer_input"  # for the remat policies
REMAT_POLICIES = {
    "none": None,
    "matmuls": jax.checkpoint_policies.save_from_both_policies(  # a flash kernel is no matmul to jax
        jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(SELF_NAME, CROSS_NAME)
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention_out": jax.checkpoint_policies.save_only_these_names(SELF_NAME),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT_NAME],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True)
class VideoDiTConfig:
    """Shape of a `VideoDiT` and how it is computed."""

    width: int
    """token width d"""
    depth: int
    """number of blocks"""
    heads: int
    """attention heads; the head size width / heads is even and at least 6"""
    mlp_width: int
    """hidden width of the MLPs"""
    patch: tuple[int, int, int] = (1, 8, 8)
    """patch size in frames (always 1), height and width (equal)"""
    channels: int = 3
    """channels of a frame: 3 for pixels"""
    text_width: int | None = None
    """width of the text embedding; none: no cross-attention"""
    prediction: Prediction = "x0"
    """what the raw output stands for: x0 (the clean frame) or u (the velocity eps - x0)"""
    hints: bool = False
    """take the nearest given frames as a second input"""
    cameras: bool = False
    """take the cameras of the views as an input that may be left out"""
    frequency_width: int = 256
    """width of the sinusoid of sigma"""
    dtype: Precision = "float32"
    """precision of the matmuls: float32 or bfloat16; the rest is float32"""
    remat: Remat = "matmuls"
    """what is kept for backward: none (of this: all is kept), matmuls (results), attention_out (alone), full (a layer's input
    alone) or offload (that, in the host's memory)"""
    unroll: bool = False
    """write the layers out one by one, not as a loop: faster on CPUs, compiles longer, keeps more memory"""

    def __post_init__(self):
        for name in ("width", "depth", "heads", "mlp_width", "channels", "frequency_width"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 to {MOST}")
        if self.frequency_width % 2:
            raise ValueError(f"frequency_width is {self.frequency_width}: give an even number")
        if self.width % self.heads or (self.width // self.heads) % 2 or self.width // self.heads < 6:
            raise ValueError(
                f"width {self.width} with {self.heads} heads: the head size must be a whole even number of at least 6; "
                "choose other heads"
            )
        if len(self.patch) != 3 or self.patch[0] != 1 or self.patch[1] != self.patch[2] or self.patch[1] < 1:
            raise ValueError(f"patch {self.patch}: expected (1, p, p); frames are never merged into one token")
        for name, choices in (("prediction", Prediction), ("remat", Remat), ("dtype", Precision)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} '{getattr(self, name)}': expected one of {', '.join(get_args(choices))}")

    @property
    def head_size(self) -> int:
        """Numbers of an attention head."""
        return self.width // self.heads


class Head(nnx.Module):
    """Modulated layer norm and a linear map from tokens to patches (p, p, c) and, in an x0-model, to copy gates (p, p, n).

    It sees sigma only. It is small, so it runs in fp32: bf16 models still return smooth pixels.
    """

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs):
        area = config.patch[1] * config.patch[2]
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, config.width)) / config.width**0.5)
        self.out = layers.linear(config.width, area * config.channels, dtype=jnp.float32, rngs=rngs)
        self.copies = config.prediction == "x0"
        if self.copies:
            pictures = 1 + axes.HINT_PICTURES * config.hints
            zeros = nnx.initializers.zeros
            self.copy_gate = layers.linear(config.width, area * pictures, dtype=jnp.float32, rngs=rngs, init=zeros)

    def __call__(self, x: Float[Array, "*lead s d"], temb: Float[Array, "*lead d"]) -> Float[Array, "*lead s k"]:
        shift, scale = rearrange(temb[..., None, :] + self.modulation[...], "... two d -> two ... d")
        x = layers.modulate(x, shift, scale)
        return jnp.concatenate([self.out(x), self.copy_gate(x)], axis=-1) if self.copies else self.out(x)


class VideoDiT(nnx.Module):
    """The base model on clips. `VideoDiT(config, rngs=nnx.Rngs(0))(clip, sigma)`."""

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs, kernel: Kernel = XLA):
        self.config = config
        self.kernel = kernel  # of attention; `resolve_kernel` gives the devices' own
        dtype, width = jnp.dtype(config.dtype), config.width
        small = nnx.initializers.normal(0.02)
        patch_size = config.patch[1] * config.patch[2] * config.channels
        self.patch_embed = layers.linear(patch_size, width, dtype=dtype, rngs=rngs)
        self.time_embed = TimeEmbed(config, rngs=rngs)
        self.time_projection = layers.linear(width, 6 * width, dtype=jnp.float32, rngs=rngs, init=small)
        self.blocks = layers.stack(
            lambda keys: layers.Block(
                width, config.heads, config.mlp_width, text=config.text_width is not None, dtype=dtype, rngs=keys
            ),
            config.depth,
            rngs,
        )
        self.head = Head(config, rngs=rngs)
        self.context = nnx.Param(jnp.zeros((len(CONTEXTS), 6, width)))
        self.given = nnx.Param(jnp.zeros((width,)))
        if config.text_width is not None:
            self.text_embed = layers.MLP(config.text_width, width, width, dtype=dtype, rngs=rngs)
        if config.hints:
            hint_size = axes.HINT_PICTURES * config.patch[1] * config.patch[2] * (config.channels + 1)
            self.hint_embed = layers.linear(hint_size, width, dtype=dtype, rngs=rngs, init=nnx.initializers.zeros)
        if config.cameras:
            ray_size = RAY * config.patch[1] * config.patch[2]
            self.camera_embed = layers.linear(ray_size, width, dtype=dtype, rngs=rngs, init=nnx.initializers.zeros)

    def __call__(
        self,
        clip: Float[Array, "b f h w c"],
        sigma: Float[Array, "b"] | Float[Array, "b f"],
        given: Bool[Array, "b f"] | None = None,
        hints: Float[Array, "b f 2 h w c+1"] | None = None,
        context: str | None = "dynamic",
        text: Float[Array, "b l k"] | None = None,
        cameras: Cameras | None = None,
    ) -> Float[Array, "b f h w c"]:
        """The raw output for a noised clip.

        Args:
            clip: pixels (or latents) at noise level sigma; given frames are clean.
            sigma: noise level in [0, 1], 1 = noise; one an example or one a frame. Given frames count as 0.
            given: which frames are clean inputs; none by default.
            hints: pictures with a validity channel, slot 0 of the same view, slot 1 of the same time. By default the
                nearest given frame of the clip, in the slot that the context names. Only for a model with hints.
            context: dynamic (fixed view), freeze_time, image; None adds no context vector.
            text: embedded prompt; only for a model with text.
            cameras: one a frame, K [b f 3 3] and c2w [b f 4 4]; only for a model with cameras, which also goes without.
        """
        check_frames(clip, self.config)
        check_heads(self.config.heads)
        frames = clip.shape[1]
        given = jnp.zeros(clip.shape[:2], bool) if given is None else given
        clip, given = place(clip, 1), place(given, 1)
        sigma = axes.cell_sigma(sigma, given)
        if self.config.hints and hints is None:
            own, none = axes.clip_hints(clip, given), jnp.zeros((*clip.shape[:-1], clip.shape[-1] + 1), clip.dtype)
            hints = jnp.stack([none, own] if context == "freeze_time" else [own, none], axis=2)
        x = self.embed(clip, given, hints)
        if cameras is not None:
            x = x + self.embed_cameras(cameras, *clip.shape[2:4])
        temb, six = self.modulation(sigma)
        angles = self.angles(np.arange(frames), clip.shape[2:4])
        text = self.embed_text(text)
        six = self.add_context(six, context)

        def layer(x: jax.Array, parameters: tuple[layers.Block]) -> jax.Array:
            (block,) = parameters
            return place(self.run_block(block, x, six, angles, text), 1)

        x = self.run_layers(layer, x, (self.blocks,))
        return self.decode(self.head(x, temb), clip, hints)

    def embed(self, frames: jax.Array, given: jax.Array, hints: jax.Array | None) -> Float[Array, "*lead s d"]:
        """Tokens of frames `[..., h, w, c]`, with the given vector and the hints added; the residual stream is fp32."""
        patch = self.config.patch[1]
        x = self.patch_embed(axes.patchify(frames, patch)).astype(jnp.float32)
        x = x + jnp.where(given[..., None, None], self.given[...], 0)
        if hints is not None:
            if not self.config.hints:
                raise ValueError("this model takes no hints; build it with VideoDiTConfig(hints=True)")
            x = x + self.hint_embed(rearrange(axes.patchify(hints, patch), "... n s k -> ... s (n k)"))
        return x

    def embed_cameras(self, cameras: Cameras, height: int, width: int) -> Float[Array, "b f s d"]:
        """The cameras' share of the tokens, zeros where they are not known."""
        if not self.config.cameras:
            raise ValueError("this model takes no cameras; build it with VideoDiTConfig(cameras=True)")
        rays = axes.patchify(plucker_rays(cameras, height, width), self.config.patch[1])
        tokens = self.camera_embed(rays).astype(jnp.float32)
        return tokens if cameras.known is None else jnp.where(cameras.known[:, None, None, None], tokens, 0)

    def decode(
        self, out: Float[Array, "*lead s k"], frames: Float[Array, "*lead h w c"], hints: jax.Array | None
    ) -> Float[Array, "*lead h w c"]:
        """Frames from the head's output, with the model's own input and hints copied as the gates say."""
        patch, (height, _, channels) = self.config.patch[1], frames.shape[-3:]
        pixels, gates = jnp.split(out, [patch * patch * channels], axis=-1)
        pixels = axes.unpatchify(pixels, patch, height)
        if not self.head.copies:
            return pixels
        pictures = [frames] + (
            [hints[..., k, :, :, :channels] for k in range(axes.HINT_PICTURES)] if self.config.hints else []
        )
        gates = axes.unpatchify(gates, patch, height)
        return pixels + sum(gates[..., k, None] * picture for k, picture in enumerate(pictures))

    def embed_text(self, text: jax.Array | None) -> jax.Array | None:
        """The text's tokens; raises where text and model do not fit together."""
        if (text is None) != (self.config.text_width is None):
            raise ValueError(
                "this model needs text embeddings" if text is None else "this model takes no text (text_width is None)"
            )
        return None if text is None else self.text_embed(text)

    def modulation(self, sigma: Float[Array, "*lead"]) -> tuple[Float[Array, "*lead d"], Float[Array, "*lead 6 d"]]:
        """(temb, six): the vector of the noise level, and its projection to the blocks' six vectors."""
        temb = place(self.time_embed(sigma), sigma.ndim - 1)
        six = rearrange(self.time_projection(jax.nn.silu(temb)), "... (six d) -> ... six d", six=6)
        return temb, place(six, sigma.ndim - 1)

    def add_context(self, six: jax.Array, context: str | None) -> jax.Array:
        """The blocks' six vectors with the row of the context added."""
        if context is None:
            return six
        if context not in CONTEXTS:
            raise ValueError(f"context '{context}': expected one of {', '.join(CONTEXTS)} or None")
        return six + self.context[CONTEXTS.index(context)]

    def angles(self, positions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Rotary angles `[f, s, e/2]` for frames at `positions` of `size` (height, width) pixels."""
        patch = self.config.patch[1]
        return layers.rotary_angles(positions, size[0] // patch, size[1] // patch, self.config.head_size)

    def run_block(
        self, block: layers.Block, x, six, angles, text, attention: Callable = clip_attention
    ) -> Float[Array, "*lead f s d"]:
        """A block with the model's attention kernel."""
        attention, cross = (functools.partial(of, kernel=self.kernel) for of in (attention, cross_attention))
        return block(x, six, angles, text, attention, cross)

    def run_layers(self, layer: Callable, x: Any, parameters: Any) -> Any:
        """x after `x = layer(x, its parameters)` for each layer, gathered and under the rematerialization policy."""
        policy = REMAT_POLICIES[self.config.remat]

        def body(x, parameters):
            if self.config.remat == "offload":
                x = jax.tree.map(lambda stream: checkpoint_name(stream, INPUT_NAME), x)
            return layer(x, gather_layer(parameters, jnp.dtype(self.config.dtype))), None

        body = body if policy is None else jax.checkpoint(body, policy=policy)
        return jax.lax.scan(body, x, parameters, unroll=self.config.unroll)[0]


class TimeEmbed(nnx.Module):
    """The noise level's vector: MLP(sinusoid(1000 sigma)), in fp32."""

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.in_ = layers.linear(config.frequency_width, config.width, dtype=jnp.float32, rngs=rngs, init=small)
        self.out = layers.linear(config.width, config.width, dtype=jnp.float32, rngs=rngs, init=small)

    def __call__(self, sigma: Float[Array, "*lead"]) -> Float[Array, "*lead d"]:
        hidden = self.in_(layers.sinusoid(1000.0 * sigma, self.in_.in_features))
        return self.out(jax.nn.silu(place(hidden, sigma.ndim - 1)))


def check_frames(frames: jax.Array, config: VideoDiTConfig) -> None:
    """Raises if the patch does not divide the frames or the channels are not the model's."""
    height, width, channels = frames.shape[-3:]
    if channels != config.channels or height % config.patch[1] or width % config.patch[2]:
        raise ValueError(
            f"frames of {height} x {width} with {channels} channels: expected {config.channels} channels and sides that "
            f"the patch of {config.patch[1]} divides"
        )
