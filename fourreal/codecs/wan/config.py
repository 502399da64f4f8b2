"""Sizes of the autoencoders of Wan 2.1 and 2.2, in the terms of diffusers' `AutoencoderKLWan`.

                           factors (t, h, w)   channels   parameters
WAN_2_1   Wan2.1           4, 8, 8             16         126.9 M
WAN_2_2   Wan2.2-TI2V-5B   4, 16, 16           48         704.7 M    2 x 2 pixels are moved into channels first
"""

import dataclasses
from typing import Any, NamedTuple

from fourreal.errors import UserError


class Stage(NamedTuple):
    """One resolution of the encoder or the decoder: residual blocks, then a resampling by 2 where `space` holds."""

    width_in: int
    width: int
    """channels after the first residual block"""
    blocks: int
    space: bool
    """height and width are halved (encoder) or doubled (decoder)"""
    time: bool
    """the number of frames, too"""
    width_out: int
    """channels after the resampling"""


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """The network's sizes and the statistics of its latents; by default Wan 2.1."""

    base_dim: int = 96
    """channels of the encoder at full resolution"""
    decoder_base_dim: int = 96
    z_dim: int = 16
    """channels of a latent"""
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    """channels of each resolution, in multiples of the base's"""
    num_res_blocks: int = 2
    """of a resolution; the decoder has one more"""
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    """which of the halvings of height and width halve time, too (spelled as in the released config files)"""
    is_residual: bool = False
    """a shortcut without parameters leads past every resolution (Wan 2.2)"""
    patch_size: int = 1
    """pixels on a side that are moved into channels first"""
    latents_mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    latents_std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )

    def __post_init__(self):
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise UserError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries: dim_mult has {len(self.dim_mult)}, "
                f"expected {len(self.dim_mult) - 1}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise UserError(
                    f"{name} has {len(getattr(self, name))} entries: expected one a latent channel, {self.z_dim}"
                )
        if self.is_residual and not self._shortcuts_divide():
            raise UserError(
                f"base_dim {self.base_dim}, decoder_base_dim {self.decoder_base_dim}, dim_mult={self.dim_mult}: the shortcuts "
                "of is_residual move whole channels; expected multiples that double at most, as dim_mult=(1, 2, 4, 4)"
            )

    @property
    def time_factor(self) -> int:
        """Frames for one latent, but for the first, which stands for one frame."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def space_factor(self) -> int:
        """Pixels for one of a latent, along a side."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def patch_channels(self) -> int:
        """Channels of a frame as the network sees it."""
        return 3 * self.patch_size**2

    def encoder_stages(self) -> list[Stage]:
        """From full resolution down; a resampling keeps the channels."""
        widths = [self.base_dim * factor for factor in (1, *self.dim_mult)]
        halves = [*((True, time) for time in self.temperal_downsample), (False, False)]
        return [
            Stage(width_in, width, self.num_res_blocks, space, time, width)
            for width_in, width, (space, time) in zip(widths[:-1], widths[1:], halves, strict=True)
        ]

    def decoder_stages(self) -> list[Stage]:
        """From latents up; in Wan 2.1 a resampling halves the channels."""
        widths = [self.decoder_base_dim * factor for factor in self.dim_mult[::-1]]
        doubles = [*((True, time) for time in self.temperal_downsample[::-1]), (False, False)]
        stages, width_in = [], widths[0]
        for width, (space, time) in zip(widths, doubles, strict=True):
            width_out = width // 2 if space and not self.is_residual else width
            stages.append(Stage(width_in, width, self.num_res_blocks + 1, space, time, width_out))
            width_in = width_out
        return stages

    def _shortcuts_divide(self) -> bool:
        def block(stage: Stage) -> int:
            return (1 + stage.time) * (1 + stage.space) ** 2

        down = [stage.width_in * block(stage) % stage.width for stage in self.encoder_stages()]
        up = [stage.width_out * block(stage) % stage.width_in for stage in self.decoder_stages() if stage.space]
        return not any(down + up)

    @classmethod
    def from_diffusers(cls, values: dict[str, Any]) -> "WanVAEConfig":
        """The config of diffusers' `config.json`. Raises UserError for what these networks do not have."""
        if values.get("attn_scales"):
            raise UserError(f"attn_scales is {values['attn_scales']}: no released Wan has any, take one of those")
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in fields and value is not None}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        if "base_dim" in known:
            known.setdefault("decoder_base_dim", known["base_dim"])
        return cls(**known)


WAN_2_1 = WanVAEConfig()
WAN_2_2 = WanVAEConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    patch_size=2,
    latents_mean=(
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
        *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
        *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
        *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
        *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ),
    latents_std=(
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
        *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
        *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
        *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
        *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
)
