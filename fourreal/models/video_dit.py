"""`VideoDiT`: a video diffusion transformer, laid out as Wan 2.1, so that its weights load by a map of names.

    tokens = Linear(patches(x)) [+ given] [+ tokens of the conditions]
    temb   = MLP(sinusoid(1000 sigma))                          one vector a frame
    six    = Linear(SiLU(temb)) [+ context row]                 modulation of every block, plus a table per block
    out    = unpatch(Linear(LN(tokens) (1 + scale) + shift)),   (shift, scale) = table + temb

Ours, zero-initialised, so that a fresh model equals the plain one: the context table (what kind of clip this is), the
`given` vector (which frames are clean inputs; their sigma is 0), what the conditions add (see `conditions/`) and, in an
x0-model, a gate per pixel that copies at the end, from its own input and from the pictures p_k that conditions offer:

    copies "add":    out = out + gate_0 x + sum_k gate_k p_k,              gates = Linear(head's modulated tokens)
    copies "mix":    m = w_0 out + sum_k w_k p_k,                          w = softmax(0, gate_1, gate_2, ...)
                     out = m + k (x - (1 - sigma) m),                      s = 0.15 exp(gate_0)
                     k = (1 - sigma) s^2 / ((1 - sigma)^2 s^2 + sigma^2)

Much of a grid stands still, and at low noise x is nearly the answer: a narrow model passes neither through its tokens well.
A mix is what is believed before looking at x, and s how far that may be off; out is the mean of what is left once x is seen,
as x0 ~ N(m, s^2) and x ~ N((1 - sigma) x0, sigma^2). With s the same everywhere this is the skip of Karras et al. (2022).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from fourreal import grid as axes
from fourreal.conditions.condition import Condition, Conditions, check_conditions
from fourreal.conditions.context import ContextTable
from fourreal.conditions.given import GivenVector
from fourreal.errors import UserError
from fourreal.models.block import Block
from fourreal.models.fusions.base import Base
from fourreal.nn.attention import CROSS_NAME, SELF_NAME, clip_attention, cross_attention
from fourreal.nn.cpu import dot
from fourreal.nn.embedding import sinusoid
from fourreal.nn.kernels import XLA, Kernel
from fourreal.nn.linear import linear
from fourreal.nn.low_rank import add_low_rank
from fourreal.nn.norms import modulate
from fourreal.nn.projective import MULTIPLE, Projective
from fourreal.nn.rotary import rotary_angles
from fourreal.nn.stack import keep_rounded, stack
from fourreal.parallel.activations import place
from fourreal.parallel.layout import FSDP, gather

Prediction = Literal["x0", "u"]
Precision = Literal["float32", "bfloat16"]
Copies = Literal["add", "mix"]
Remat = Literal["none", "matmuls", "attention_out", "full", "offload"]
MOST = 2**20  # of anything that is counted: far above what fits a device
SPREAD = 0.15  # how far a fresh model's mix is off, of pixels in [-1, 1]
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
    prediction: Prediction = "x0"
    """what the raw output stands for: x0 (the clean frame) or u (the velocity eps - x0)"""
    copies: Copies = "add"
    """how an x0-model copies pictures that conditions offer: gates that add them, or a convex mix of them and its own,
    which its input corrects"""
    conditions: tuple[Condition, ...] = ()
    """what it is told beside the given cells: hints (the nearest given frames), cameras, prope (cameras too), text"""
    frequency_width: int = 256
    """width of the sinusoid of sigma"""
    dtype: Precision = "float32"
    """precision of the matmuls: float32 or bfloat16; the rest is float32"""
    remat: Remat = "matmuls"
    """what is kept for backward: none (of this: all is kept), matmuls (results), attention_out (alone), full (a layer's input
    alone) or offload (that, in the host's memory)"""
    kept: Precision = "float32"
    """precision of the layers' inputs that remat full keeps; bfloat16 halves them and rounds what gradients start from"""
    lora_rank: int = 0
    """rank of what LoRA adds to the blocks' `lora_maps` (Hu et al. 2021); 0: nothing"""
    lora_alpha: float | None = None
    """it is added times this / rank; none: times 1"""
    lora_maps: tuple[str, ...] = ("attention.*",)
    """paths of linear maps in a block, with * for any letters: attention.query, mlp.in_, cross.text.value and so on"""
    unroll: bool = False
    """write the layers out one by one, not as a loop: faster on CPUs, compiles longer, keeps more memory"""

    def __post_init__(self):
        check_conditions(self.conditions)
        for name in ("width", "depth", "heads", "mlp_width", "channels", "frequency_width"):
            if not 1 <= getattr(self, name) <= MOST:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 to {MOST}")
        if self.frequency_width % 2:
            raise UserError(f"frequency_width is {self.frequency_width}: give an even number")
        if self.width % self.heads or (self.width // self.heads) % 2 or self.width // self.heads < 6:
            raise UserError(
                f"width {self.width} with {self.heads} heads: the head size must be a whole even number of at least 6; "
                "choose other heads"
            )
        if (posed := [each.name for each in self.conditions if each.pose]) and self.head_size % MULTIPLE:
            raise UserError(
                f"width {self.width} with {self.heads} heads: for {posed[0]} the head size must be a multiple of {MULTIPLE}; "
                "choose other heads"
            )
        if len(self.patch) != 3 or self.patch[0] != 1 or self.patch[1] != self.patch[2] or self.patch[1] < 1:
            raise UserError(f"patch {self.patch}: expected (1, p, p); frames are never merged into one token")
        for name, choices in (
            ("prediction", Prediction),
            ("copies", Copies),
            ("remat", Remat),
            ("dtype", Precision),
            ("kept", Precision),
        ):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name} '{getattr(self, name)}': expected one of {', '.join(get_args(choices))}")
        if not 0 <= self.lora_rank <= self.width or (self.lora_alpha is not None and self.lora_alpha <= 0):
            raise UserError(
                f"lora_rank {self.lora_rank}, lora_alpha {self.lora_alpha}: give a rank from 0 to the width, {self.width}, and "
                "an alpha above 0"
            )
        if self.lora_rank and not self.lora_maps:
            raise UserError(f"lora_rank is {self.lora_rank} and lora_maps empty: name maps, or give rank 0")
        if self.kept != "float32" and self.remat != "full":
            raise UserError(
                f"kept {self.kept} with remat {self.remat}: layers' inputs alone are rounded; give remat full"
            )

    def with_remat(self, remat: Remat) -> "VideoDiTConfig":
        """The same model that keeps something else for backward."""
        return dataclasses.replace(self, remat=remat, kept=self.kept if remat == "full" else "float32")

    @property
    def lora_scale(self) -> float:
        """What low-rank additions are multiplied by."""
        return (self.lora_rank if self.lora_alpha is None else self.lora_alpha) / max(self.lora_rank, 1)

    @property
    def head_size(self) -> int:
        """Numbers of an attention head."""
        return self.width // self.heads


def _weighted(weights: Float[Array, "*lead h w n"], pictures: Sequence[Float[Array, "*lead h w c"]]) -> jax.Array | int:
    return sum(weights[..., k, None] * picture for k, picture in enumerate(pictures))


class Head(nnx.Module):
    """Modulated layer norm and a linear map from tokens to patches (p, p, c) and, in an x0-model, to copy gates (p, p, n).

    It sees sigma only. It is small, so it runs in fp32: bf16 models still return smooth pixels.
    """

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs):
        area = config.patch[1] * config.patch[2]
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, config.width)) / config.width**0.5)
        self.out = linear(config.width, area * config.channels, dtype=jnp.float32, rngs=rngs)
        self.copies = config.prediction == "x0"
        if self.copies:
            self.copy_gate = CopyGate(config, rngs=rngs)

    layout: ClassVar[dict[str, P]] = {"modulation": P(), "out.kernel": P(FSDP, None), "out.bias": P()}

    def __call__(self, x: Float[Array, "*lead s d"], temb: Float[Array, "*lead d"]) -> Float[Array, "*lead s k"]:
        shift, scale = rearrange(temb[..., None, :] + self.modulation[...], "... two d -> two ... d")
        x = modulate(x, shift, scale)
        return jnp.concatenate([self.out(x), self.copy_gate(x)], axis=-1) if self.copies else self.out(x)


class CopyGate(nnx.Linear):
    """The gates of an x0-model's copies, of its own input and of conditions' pictures; at first zero or what these say."""

    layout: ClassVar[dict[str, P]] = {"kernel": P(FSDP, None), "bias": P()}
    group: ClassVar[str] = "conditions"

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs):
        first = [0.0] + [condition.copied for condition in config.conditions for _ in range(condition.pictures)]
        first, zeros = np.tile(np.float32(first), config.patch[1] * config.patch[2]), nnx.initializers.zeros
        super().__init__(config.width, len(first), dtype=jnp.float32, kernel_init=zeros, rngs=rngs, dot_general=dot)
        self.bias[...] = jnp.asarray(first)


class TimeEmbed(nnx.Module):
    """The noise level's vector: MLP(sinusoid(1000 sigma)), in fp32."""

    layout: ClassVar[dict[str, P]] = {
        "in_.kernel": P(None, FSDP),
        "in_.bias": P(),
        "out.kernel": P(FSDP, None),
        "out.bias": P(),
    }

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.in_ = linear(config.frequency_width, config.width, dtype=jnp.float32, rngs=rngs, init=small)
        self.out = linear(config.width, config.width, dtype=jnp.float32, rngs=rngs, init=small)

    def __call__(self, sigma: Float[Array, "*lead"], lead: int) -> Float[Array, "*lead d"]:
        hidden = self.in_(sinusoid(1000.0 * sigma, self.in_.in_features))
        return self.out(jax.nn.silu(place(hidden, lead)))


class VideoDiT(nnx.Module):
    """The base model on clips. `VideoDiT(config, rngs=nnx.Rngs(0))(clip, sigma)`."""

    stacked: ClassVar[tuple[str, ...]] = ("blocks",)
    layout: ClassVar[dict[str, P]] = {
        "patch_embed.kernel": P(None, FSDP),
        "patch_embed.bias": P(),
        "time_projection.kernel": P(FSDP, None),
        "time_projection.bias": P(),
    }

    def __init__(self, config: VideoDiTConfig, *, rngs: nnx.Rngs, kernel: Kernel = XLA):
        self.config = config
        self.kernel = kernel  # of attention; `resolve_kernel` gives the devices' own
        dtype, width = jnp.dtype(config.dtype), config.width
        small = nnx.initializers.normal(0.02)
        patch_size = config.patch[1] * config.patch[2] * config.channels
        self.patch_embed = linear(patch_size, width, dtype=dtype, rngs=rngs)
        self.time_embed = TimeEmbed(config, rngs=rngs)
        self.time_projection = linear(width, 6 * width, dtype=jnp.float32, rngs=rngs, init=small)
        cross = tuple(condition.name for condition in config.conditions if condition.cross)
        pose = tuple(condition.name for condition in config.conditions if condition.pose)

        def block(rngs: nnx.Rngs) -> Block:
            made = Block(width, config.heads, config.mlp_width, cross=cross, pose=pose, dtype=dtype, rngs=rngs)
            if config.lora_rank:
                add_low_rank(made, config.lora_maps, config.lora_rank, config.lora_scale, rngs=rngs)
            return made

        self.blocks = stack(block, config.depth, rngs)
        self.head = Head(config, rngs=rngs)
        self.context = ContextTable(width)
        self.given = GivenVector(width)
        self.conditions = nnx.Dict({condition.name: condition.module(config, rngs) for condition in config.conditions})

    def __call__(
        self,
        clip: Float[Array, "b f h w c"],
        sigma: Float[Array, ""] | Float[Array, "b"] | Float[Array, "b f"],
        given: Bool[Array, "b f"] | None = None,
        conditions: Conditions | None = None,
    ) -> Float[Array, "b f h w c"]:
        """The raw output for a noised clip, which is a grid of one view or, a freeze-time video, of one time.

        Args:
            clip: pixels in [-1, 1] (or latents) at noise level sigma; given frames are clean.
            sigma: noise level in [0, 1], 1 = noise; one for all, one an example or one a frame. Given frames count as 0.
            given: which frames are clean inputs; none by default.
            conditions: by name. `context` is dynamic (fixed view, the default), freeze_time, image, or None, which adds no
                context vector; the others are values of such a grid, cameras K [b 1 3 3] of a fixed view, say.
        """
        from fourreal.models.streams import run_grid  # which knows this class

        conditions = dict(conditions or {})
        context = conditions.pop("context", "dynamic")
        if np.ndim(clip) != 5:
            raise UserError(f"clip is {list(np.shape(clip))}: expected [b, frames, height, width, channels]")
        axis = 2 if context == "freeze_time" else 1
        grid, given = (None if x is None else jnp.expand_dims(x, axis) for x in (clip, given))
        sigma = jnp.expand_dims(sigma, axis) if np.ndim(sigma) == 2 else sigma
        result = run_grid(self, Base(context), None, None, grid, sigma, given, conditions)
        return jnp.squeeze(result.decode(result.heads["stream"]), axis)

    def modulation(
        self, sigma: Float[Array, "*lead"], lead: int = 2
    ) -> tuple[Float[Array, "*lead d"], Float[Array, "*lead 6 d"]]:
        """(temb, six): the vector of the noise level, and its projection to the blocks' six vectors."""
        temb = place(self.time_embed(sigma, lead), lead)
        six = rearrange(self.time_projection(jax.nn.silu(temb)), "... (six d) -> ... six d", six=6)
        return temb, place(six, lead)

    def embed(self, frames: Float[Array, "*lead h w c"], given: Bool[Array, "*lead"]) -> Float[Array, "*lead s d"]:
        """Tokens of frames with the given vector added; the residual stream is fp32."""
        x = self.patch_embed(axes.patchify(frames, self.config.patch[1])).astype(jnp.float32)
        return x + self.given(given)

    def decode(
        self,
        out: Float[Array, "*lead s k"],
        frames: Float[Array, "*lead h w c"],
        sigma: Float[Array, "*lead"],
        pictures: Float[Array, "*lead n h w c+1"] | None = None,
    ) -> Float[Array, "*lead h w c"]:
        """Frames from the head's output, with the model's own input, at `sigma`, and `pictures` copied as the gates say."""
        patch, (height, _, channels) = self.config.patch[1], frames.shape[-3:]
        pixels, gates = jnp.split(out, [patch * patch * channels], axis=-1)
        pixels = axes.unpatchify(pixels, patch, height)
        if not self.head.copies:
            return pixels
        gates = axes.unpatchify(gates, patch, height)
        offered = [] if pictures is None else [pictures[..., k, :, :, :channels] for k in range(pictures.shape[-4])]
        own, weights = gates[..., :1], gates[..., 1:]
        if self.config.copies == "add":
            return pixels + own * frames + _weighted(weights, offered)
        weights = jax.nn.softmax(jnp.concatenate([jnp.zeros_like(own), weights], axis=-1))
        mix = _weighted(weights, [pixels, *offered])
        level, variance = sigma[..., None, None, None], jnp.square(SPREAD * jnp.exp(own))
        kept = (1 - level) * variance / (jnp.square(1 - level) * variance + jnp.square(level))
        return mix + kept * (frames - (1 - level) * mix)

    def angles(self, positions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Rotary angles `[f, s, e/2]` for frames at `positions` of `size` (height, width) pixels."""
        patch = self.config.patch[1]
        return rotary_angles(positions, size[0] // patch, size[1] // patch, self.config.head_size)

    def projective(self, pose: Float[Array, "*lead 4 4"], size: tuple[int, int]) -> Projective:
        """What the poses of cells say to attention, for frames of `size` (height, width) pixels."""
        patch = self.config.patch[1]
        return Projective.of(pose, size[0] // patch, size[1] // patch, self.config.head_size)

    def run_block(
        self,
        block: Block,
        x: Float[Array, "*lead f s d"],
        six: Float[Array, "*lead f 6 d"],
        angles: np.ndarray,
        cross: dict[str, Float[Array, "b n d"]],
        poses: dict[str, Projective],
        attention: Callable = clip_attention,
    ) -> Float[Array, "*lead f s d"]:
        """A block with the model's attention kernel; `cross` holds the tokens of its cross-attentions, one set for a grid.

        `poses` hold what its cells' poses say, by the condition's name.
        """
        cross = {name: jnp.expand_dims(t, tuple(range(1, x.ndim - 3))) for name, t in cross.items()}
        of_self, of_cross = (functools.partial(of, kernel=self.kernel) for of in (attention, cross_attention))
        return block(x, six, angles, cross, poses, of_self, of_cross)

    def run_layers(self, layer: Callable, x: Any, parameters: Any) -> tuple[Any, Any]:
        """(x after `x, seen = layer(x, its parameters)` for each layer, all that was seen), gathered and under remat."""
        policy = REMAT_POLICIES[self.config.remat]

        def body(x, parameters):
            if self.config.remat == "offload":
                x = jax.tree.map(lambda stream: checkpoint_name(stream, INPUT_NAME), x)
            number, *modules = parameters
            return layer(x, number, *(gather(module, jnp.dtype(self.config.dtype)) for module in modules))

        if self.config.kept != "float32":
            body = keep_rounded(body, x, jax.tree.map(lambda leaf: leaf[0], parameters), jnp.dtype(self.config.kept))
        elif policy is not None:
            body = jax.checkpoint(body, policy=policy)
        return jax.lax.scan(body, x, parameters, unroll=self.config.unroll)
