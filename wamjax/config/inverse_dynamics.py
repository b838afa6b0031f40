"""Configuration of inverse-dynamics models, which read actions off frames (``models.inverse_dynamics``)."""

from __future__ import annotations

import dataclasses

from wamjax.config.backbone import BlockConfig
from wamjax.config.choices import DType, Remat
from wamjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseDynamicsConfig:
    """A convolutional network from two consecutive frames to the actions executed between them.

    Canvas, frame stride and dims of an action are those of ``data``; how many actions lie between two frames is
    ``layout.actions_per_block / layout.frames_per_block``.

    Attributes:
      width: Channels of every convolution.
      num_layers: 3 x 3 convolutions with a residual connection, after the first.
      hidden_width: Hidden width of the layers that read the mean over all pixels.
      stride: Step of the first convolution in rows and columns: 1 keeps every pixel.
      compute_dtype: Dtype of products; the mean over pixels is fp32.
    """

    width: int = 128
    num_layers: int = 3
    hidden_width: int = 128
    stride: int = 1
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "hidden_width", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.inverse_dynamics.{name}={getattr(self, name)}; expected 1 or more")

    @property
    def remat(self) -> Remat:
        """What the backward pass finds: everything."""
        return "none"

    @property
    def block(self) -> BlockConfig:
        """A block of this width and dtype, where a plan asks for one; this network has no such blocks."""
        return BlockConfig(
            width=self.width,
            num_heads=1,
            attention_width=2,  # of a head that nothing attends with
            ffn_width=self.width,
            cross_attention=False,
            qk_norm="none",
            modulation="none",
            compute_dtype=self.compute_dtype,
        )


# Source: UniPi (arXiv 2302.00111), its description of the inverse-dynamics model. Unverified: the channels of the
# convolutions, taken to be those of the hidden layer.
UNIPI = InverseDynamicsConfig(width=128, num_layers=3, hidden_width=128)
