"""Shape of a Wan video autoencoder, and the two published ones.

Owns the numbers and the sizes that follow from them; the modules are ``models.wan_vae``, the FLOPs ``flops.wan_vae``.
"""

from __future__ import annotations

import dataclasses

from wamjax.config.choices import DType
from wamjax.errors import ConfigError, DataError

# Frames the published autoencoders take per latent frame after the first; clips have 4 n + 1 frames for any of them.
CLIP_STRIDE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """A causal video autoencoder: one latent frame for the first frame, then one for every few.

    Attributes:
      base_width: Channels of the encoder's first level.
      decoder_base_width: Channels of the decoder's last level.
      width_multipliers: Channels of each level as multiples of the base width, from pixels to latents.
      num_res_blocks: Residual blocks per encoder level; a decoder level has one more.
      temporal_downsample: For each step between levels, which halves height and width, whether it halves time too.
      latent_channels: Channels of a latent.
      has_level_shortcuts: Whether every level is bridged by an average (down) or a repetition (up) without parameters,
        as in Wan 2.2. It also changes the width that upsampling leaves.
      patch_size: Side of the square of pixels that is folded into channels before the first convolution.
      in_channels: Channels of the first convolution: those of a pixel x ``patch_size`` squared.
      out_channels: The same of the last convolution.
      latents_mean: Mean of each latent channel over the training data.
      latents_std: Standard deviation of each latent channel.
      compute_dtype: Dtype of activations and products; norms, the softmax and the moments stay fp32.

    Source: ``AutoencoderKLWan`` of diffusers, whose names for these are in ``weights.kinds.autoencoder_kl_wan``.
    """

    base_width: int = 96
    decoder_base_width: int = 96
    width_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_channels: int = 16
    has_level_shortcuts: bool = False
    patch_size: int = 1
    in_channels: int = 3
    out_channels: int = 3
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        """Refuses shapes that no autoencoder of this kind has."""
        if len(self.temporal_downsample) != len(self.width_multipliers) - 1:
            raise ConfigError(
                f"temporal_downsample has {len(self.temporal_downsample)} entries; expected one for each of the "
                f"{len(self.width_multipliers) - 1} steps between the levels of width_multipliers"
            )
        if CLIP_STRIDE % self.temporal_compression:
            raise ConfigError(
                f"temporal_downsample={self.temporal_downsample} halves time {sum(self.temporal_downsample)} times; "
                "a Wan autoencoder halves it at most twice"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} entries; expected latent_channels={self.latent_channels}"
                )
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.patch_size**2:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not a multiple of patch_size squared ({self.patch_size**2})"
                )
        if self.has_level_shortcuts:
            self._check_shortcuts()

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def spatial_compression(self) -> int:
        """Rows (and columns) of pixels per row of latents."""
        return self.patch_size * 2 ** len(self.temporal_downsample)

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of each encoder level, from pixels to latents."""
        return tuple(self.base_width * multiplier for multiplier in self.width_multipliers)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each decoder level, from latents to pixels."""
        return tuple(self.decoder_base_width * multiplier for multiplier in reversed(self.width_multipliers))

    def _check_shortcuts(self) -> None:
        """Refuses widths between which channels cannot be averaged (down) or repeated (up) in whole groups."""
        blocks = [4 * (2 if halves_time else 1) for halves_time in self.temporal_downsample]
        down = zip((self.base_width, *self.encoder_widths[:-1]), self.encoder_widths, [*blocks, 1], strict=True)
        up = zip(
            (self.decoder_widths[0], *self.decoder_widths[:-2]), self.decoder_widths[:-1], blocks[::-1], strict=True
        )
        steps = [(fan_in * block, fan_out) for fan_in, fan_out, block in down]
        steps += [(fan_out * block, fan_in) for fan_in, fan_out, block in up]
        for channels, groups in steps:
            if channels % groups:
                raise ConfigError(
                    f"width_multipliers={self.width_multipliers}: a level shortcut cannot divide {channels} channels "
                    f"into {groups}; change the widths or has_level_shortcuts"
                )

    def check_clip(self, frames: int, height: int, width: int, *, continues: bool = False) -> None:
        """Raises ``DataError`` unless the autoencoder takes clips of this size.

        Args:
          frames: 4 n + 1, or 4 n if ``continues``.
          height: Rows of pixels: a multiple of ``spatial_compression``.
          width: Columns of pixels: the same.
          continues: Whether the frames follow others of the same clip.
        """
        if frames < 1 or frames % CLIP_STRIDE != (0 if continues else 1):
            expected = "4 n frames (4, 8, ...) after the first" if continues else "4 n + 1 frames (1, 5, 9, ...)"
            raise DataError(f"video has {frames} frames; a Wan autoencoder takes {expected}: cut or pad the clip")
        grid = self.spatial_compression
        if min(height, width) < 1 or height % grid or width % grid:
            raise DataError(
                f"video is {height} x {width} pixels; height and width must be multiples of {grid}: crop or resize it"
            )


# Source: diffusers, class defaults of AutoencoderKLWan; wan/modules/vae.py of Wan-Video/Wan2.1.
WAN_2_1_VAE = WanVaeConfig(
    latents_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latents_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)  # fmt: skip

# Source: diffusers, scripts/convert_wan_to_diffusers.py, vae22_diffusers_config; wan/modules/vae2_2.py of
# Wan-Video/Wan2.2.
WAN_2_2_VAE = WanVaeConfig(
    base_width=160,
    decoder_base_width=256,
    latent_channels=48,
    has_level_shortcuts=True,
    patch_size=2,
    in_channels=12,
    out_channels=12,
    latents_mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    latents_std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
)  # fmt: skip
