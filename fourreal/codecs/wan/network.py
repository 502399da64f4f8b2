"""Wan's encoder and decoder: frames in [-1, 1] to normalised latents and back.

    latents = (mean of the encoder's distribution - latents_mean) / latents_std          one latent for frame 0, then one for 4

Both take a video in pieces, frame 0 alone and then `chunk` latents at a time in one `lax.scan`, so that the memory of
activations does not grow with its length; `encode_piece` and `decode_piece` of a whole video and an empty `Past` give the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from fourreal.codecs.wan.config import WanVAEConfig
from fourreal.codecs.wan.layers import (
    Params,
    Past,
    causal_conv,
    downsample,
    frame_attention,
    norm,
    pointwise,
    residual_block,
    shortcut_down,
    shortcut_up,
    upsample,
)
from fourreal.codecs.wan.tiles import Tiles, in_tiles


def encode(
    parameters: Params,
    config: WanVAEConfig,
    frames: Float[Array, "b t h w 3"],
    tiles: Tiles | None = None,
    chunk: int = 1,
) -> Float[Array, "b u y x z"]:
    """Latents of t = 4k + 1 frames whose sides `config.space_factor` divides; u = k + 1.

    Args:
        parameters: as `parameters.from_diffusers` returns them.
        config: of the network.
        frames: in [-1, 1].
        tiles: of the frames, in latents; None: whole frames.
        chunk: latents at a time, after the first.
    """
    x = to_patches(frames, config.patch_size)

    def run(x: jax.Array) -> jax.Array:
        return in_pieces(lambda x, past: encode_piece(parameters, config, x, past), x, chunk * config.time_factor)

    latents = run(x) if tiles is None else in_tiles(run, x, tiles, config.space_factor // config.patch_size, 1)
    return (latents - np.float32(config.latents_mean)) / np.float32(config.latents_std)


def decode(
    parameters: Params,
    config: WanVAEConfig,
    latents: Float[Array, "b u y x z"],
    tiles: Tiles | None = None,
    chunk: int = 1,
) -> Float[Array, "b t h w 3"]:
    """Frames of latents, about in [-1, 1] and not clipped; t = 4 (u - 1) + 1. The arguments are those of `encode`."""
    x = latents * np.float32(config.latents_std) + np.float32(config.latents_mean)

    def run(x: jax.Array) -> jax.Array:
        return in_pieces(lambda x, past: decode_piece(parameters, config, x, past), x, chunk)

    # seams are blended before patches become pixels, as in diffusers
    x = run(x) if tiles is None else in_tiles(run, x, tiles, 1, config.space_factor // config.patch_size)
    return from_patches(x, config.patch_size)


def to_patches(x: Float[Array, "b t h w 3"], patch: int) -> Float[Array, "b t h/p w/p 3pp"]:
    """Blocks of pixels as channels, in the order (color, column, row)."""
    return rearrange(x, "b t (h p) (w q) c -> b t h w (c q p)", p=patch, q=patch)


def from_patches(x: Float[Array, "b t h/p w/p 3pp"], patch: int) -> Float[Array, "b t h w 3"]:
    """The inverse of `to_patches`."""
    return rearrange(x, "b t h w (c q p) -> b t (h p) (w q) c", p=patch, q=patch)


def in_pieces(
    run: Callable[[jax.Array, Past], jax.Array], x: Float[Array, "b t *rest"], length: int
) -> Float[Array, "b u *out"]:
    """run(piece, past) of frame 0, of pieces of `length` frames by a scan, and of what is left, joined along time."""
    past = Past()
    outputs, scanned = [run(x[:, :1], past)], (x.shape[1] - 1) // length * length
    kept = past.kept

    def step(kept: dict[str, jax.Array], piece: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        past = Past(kept)
        out = run(piece, past)
        return past.kept, out

    if scanned:
        kept, out = jax.lax.scan(step, kept, rearrange(x[:, 1 : 1 + scanned], "b (n k) ... -> n b k ...", k=length))
        outputs.append(rearrange(out, "n b k ... -> b (n k) ..."))
    if x.shape[1] > 1 + scanned:
        outputs.append(run(x[:, 1 + scanned :], Past(kept)))
    return jnp.concatenate(outputs, axis=1)


def encode_piece(
    parameters: Params, config: WanVAEConfig, x: Float[Array, "b t h w k"], past: Past
) -> Float[Array, "b u y x z"]:
    """The mean of the encoder's distribution, not normalised, for a piece of a video of patches."""
    p = parameters["encoder"]
    x = causal_conv(p["conv_in"], x, past, "conv_in")
    for i, stage in enumerate(config.encoder_stages()):
        part, entered = p["stages"][str(i)], x
        for j in range(stage.blocks):
            x = residual_block(part["blocks"][str(j)], x, past, f"{i}.{j}")
        if stage.space:
            x = downsample(part["resample"], x, past, f"{i}.time_conv")
        if config.is_residual:
            x = x + shortcut_down(entered, stage.width, 1 + stage.time, 1 + stage.space)
    x = _middle(p["middle"], x, past)
    x = causal_conv(p["conv_out"], jax.nn.silu(norm(p["norm_out"], x)), past, "conv_out")
    moments = pointwise(parameters["quant_conv"], x)
    return moments[..., : config.z_dim]  # the rest are logarithms of variances


def decode_piece(
    parameters: Params, config: WanVAEConfig, latents: Float[Array, "b u y x z"], past: Past
) -> Float[Array, "b t h w k"]:
    """A piece of a video of patches from latents that are not normalised."""
    p, begins = parameters["decoder"], past.begins
    x = causal_conv(p["conv_in"], pointwise(parameters["post_quant_conv"], latents), past, "conv_in")
    x = _middle(p["middle"], x, past)
    for i, stage in enumerate(config.decoder_stages()):
        part, entered = p["stages"][str(i)], x
        for j in range(stage.blocks):
            x = residual_block(part["blocks"][str(j)], x, past, f"{i}.{j}")
        if stage.space:
            x = upsample(part["resample"], x, past, f"{i}.time_conv")
            if config.is_residual:
                x = x + shortcut_up(entered, stage.width_out, 1 + stage.time, 2, begins)
    return causal_conv(p["conv_out"], jax.nn.silu(norm(p["norm_out"], x)), past, "conv_out")


def _middle(p: Params, x: Float[Array, "b t h w c"], past: Past) -> Float[Array, "b t h w c"]:
    x = residual_block(p["blocks"]["0"], x, past, "middle.0")
    return residual_block(p["blocks"]["1"], frame_attention(p["attention"], x), past, "middle.1")
