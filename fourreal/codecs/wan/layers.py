"""Layers of Wan's autoencoders, on `[b, t, h, w, c]`; a parameter is a leaf of a nested dict.

A video may come in pieces: every convolution over time keeps the last frames that it saw in a `Past`, so that

    layer(whole) = [layer(piece 1), layer(piece 2), ...]            exactly

where the first piece holds 4k + 1 frames, as does the whole, and each other one 4k. Written for the whole:

    causal convolution        y[t] = sum_k W[k] x[t - 2 + k], k = 0, 1, 2; x is 0 before frame 0
    halving of time           y[0] = x[0],  y[j] = sum_k W[k] x[2j - 2 + k]
    doubling of time          y[0] = x[0],  (y[2j - 1], y[2j]) = the two halves of a causal convolution's channels at x[j], to
                              which x[0] is 0: frame 0 passes by the convolution, and the others do not see it there
    norm                      sqrt(c) gamma x / |x| over the channels

Source: Wan's technical report (arXiv 2503.20314), section 4.1, and the code of diffusers' `AutoencoderKLWan`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from fourreal.nn.attention import attend

Params = dict[str, Any]


class Past:
    """The last input frames of every convolution over time, by its name; empty before frame 0."""

    def __init__(self, kept: dict[str, jax.Array] | None = None):
        self.kept = dict(kept or {})
        self.begins = not self.kept
        """whether the next piece holds frame 0"""

    def before(self, name: str, x: Float[Array, "b t h w c"], frames: int) -> Float[Array, "b frames+t h w c"]:
        """`x` after the `frames` that came before it, zeros before frame 0; keeps the last ones for the next piece."""
        past = jnp.zeros_like(x, shape=(x.shape[0], frames, *x.shape[2:])) if self.begins else self.kept[name]
        joined = jnp.concatenate([past, x], axis=1)
        self.kept[name] = joined[:, -frames:]
        return joined


def conv_3d(p: Params, x: Float[Array, "b t h w i"], stride: int = 1, pad: int = 0) -> Float[Array, "b u h w o"]:
    """A convolution with `kernel [t h w i o]`: over time with `stride` and no padding, over space with `pad` zeros around."""
    out = jax.lax.conv_general_dilated(
        x, p["kernel"], (stride, 1, 1), ((0, 0), (pad, pad), (pad, pad)), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    return out + p["bias"]


def conv_2d(p: Params, x: Float[Array, "b t h w i"], stride: int, pad: tuple[int, int]) -> Float[Array, "b t y x o"]:
    """A convolution of every frame with `kernel [h w i o]`, with zeros before and after each side."""
    frames = rearrange(x, "b t h w c -> (b t) h w c")
    out = jax.lax.conv_general_dilated(
        frames, p["kernel"], (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return rearrange(out + p["bias"], "(b t) h w c -> b t h w c", b=x.shape[0])


def pointwise(p: Params, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    """A convolution whose kernel `[i o]` is one pixel of one frame."""
    return x @ p["kernel"] + p["bias"]


def causal_conv(p: Params, x: Float[Array, "b t h w i"], past: Past, name: str) -> Float[Array, "b t h w o"]:
    """A causal convolution over 3 frames and 3 x 3 pixels."""
    if past.begins and x.shape[1] == 1:  # of frame 0 alone the others meet zeros
        past.before(name, x, 2)
        return conv_3d({"kernel": p["kernel"][-1:], "bias": p["bias"]}, x, pad=1)
    return conv_3d(p, past.before(name, x, 2), pad=1)


def norm(p: Params, x: Float[Array, "*lead c"]) -> Float[Array, "*lead c"]:
    """sqrt(c) gamma x / |x| over the channels, in fp32."""
    wide = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(wide**2, axis=-1, keepdims=True))
    return (wide / jnp.maximum(length, 1e-12) * x.shape[-1] ** 0.5 * p["gamma"]).astype(x.dtype)


def residual_block(p: Params, x: Float[Array, "b t h w i"], past: Past, name: str) -> Float[Array, "b t h w o"]:
    """x + conv(silu(norm(conv(silu(norm(x)))))); x through a pointwise map where the channels change."""
    shortcut = pointwise(p["shortcut"], x) if "shortcut" in p else x
    x = causal_conv(p["conv1"], jax.nn.silu(norm(p["norm1"], x)), past, f"{name}.conv1")
    x = causal_conv(p["conv2"], jax.nn.silu(norm(p["norm2"], x)), past, f"{name}.conv2")
    return shortcut + x


def frame_attention(p: Params, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """x plus attention of one head among the pixels of each frame."""
    qkv = rearrange(pointwise(p["qkv"], norm(p["norm"], x)), "b t h w (three c) -> three b t (h w) 1 c", three=3)
    out = rearrange(attend(*qkv), "b t (h w) 1 c -> b t h w c", h=x.shape[2])
    return x + pointwise(p["out"], out)


def downsample(p: Params, x: Float[Array, "b t h w c"], past: Past, name: str) -> Float[Array, "b u h/2 w/2 c"]:
    """Halves height and width (zeros to the right and below alone); time, too, where there is a `time_conv`."""
    x = conv_2d(p["conv"], x, stride=2, pad=(0, 1))
    if "time_conv" not in p:
        return x
    begins, first = past.begins, x[:, :1]
    joined = past.before(name, x, 1)
    if not begins:
        return conv_3d(p["time_conv"], joined, stride=2)
    if x.shape[1] == 1:
        return first
    return jnp.concatenate([first, conv_3d(p["time_conv"], x, stride=2)], axis=1)


def upsample(p: Params, x: Float[Array, "b t h w c"], past: Past, name: str) -> Float[Array, "b u 2h 2w o"]:
    """Doubles height and width by repetition, then convolves; time before that, where there is a `time_conv`."""
    if "time_conv" in p:
        first, later = (x[:, :1], x[:, 1:]) if past.begins else (x[:, :0], x)
        joined = past.before(name, later, 2)
        if later.shape[1]:
            later = rearrange(conv_3d(p["time_conv"], joined), "b t h w (two c) -> b (t two) h w c", two=2)
        x = jnp.concatenate([first, later], axis=1)
    x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
    return conv_2d(p["conv"], x, stride=1, pad=(1, 1))


def shortcut_down(x: Float[Array, "b t h w i"], width: int, time: int, space: int) -> Float[Array, "b u y x o"]:
    """Means of the blocks of `time` frames and `space` x `space` pixels, and of neighbouring channels where that is too many.

    A zero frame comes before frame 0, so that the numbers of frames, 4k + 1, divide. `width` are the channels of the result.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "b (t r) (h p) (w q) c -> b t h w (c r p q)", r=time, p=space, q=space)
    return rearrange(x, "b t h w (o g) -> b t h w o g", o=width).mean(-1)


def shortcut_up(
    x: Float[Array, "b t h w i"], width: int, time: int, space: int, begins: bool
) -> Float[Array, "b u y x o"]:
    """Channels as blocks of `time` frames and `space` x `space` pixels, each repeated where there are too few.

    `begins`: x holds frame 0, which stays one frame. `width` are the channels of the result.
    """
    x = jnp.repeat(x, width * time * space**2 // x.shape[-1], axis=-1)
    x = rearrange(x, "b t h w (o r p q) -> b (t r) (h p) (w q) o", r=time, p=space, q=space)
    return x[:, time - 1 :] if begins else x
