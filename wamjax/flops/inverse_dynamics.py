"""FLOPs of an inverse-dynamics model (``models.inverse_dynamics``): its convolutions over pairs of frames.

Convolutions count as ``image_embed``, the dense layers behind them as ``action_state``. Products with the zeros around
a frame are not counted (``layers.conv``).
"""

from __future__ import annotations

import math

from wamjax.config.geometry import derive_geometry
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops import layers
from wamjax.flops.backbone import COMPONENTS
from wamjax.flops.parameters import list_parameters
from wamjax.flops.tally import Tally

_TAPS, _MARGIN = (3, 3), ((1, 1), (1, 1))


def tally_pairs(config: RunConfig, *, num_pairs: int | None = None, differentiates_data: bool = False) -> Tally:
    """Adds up one sample.

    Args:
      config: A run of an inverse-dynamics model.
      num_pairs: Pairs of consecutive frames; None for those of a window.
      differentiates_data: As of ``tally_model``.

    Raises:
      ConfigError: The run has no such model.
    """
    model, parameters = config.inverse_dynamics, list_parameters(config)
    if model is None:
        raise ConfigError(f"config.inverse_dynamics is none: {config.name} has no actions between frames to count")
    total, needs = Tally(COMPONENTS, parameters, config.finetune), differentiates_data
    pairs = derive_geometry(config).num_frames - 1 if num_pairs is None else num_pairs
    size = config.data.canvas
    for path, stride in (("first", model.stride), *((f"residual_{i}", 1) for i in range(model.num_layers))):
        *_, channels, width = parameters[f"{path}.kernel"].shape
        flops = layers.conv(size, _TAPS, channels, width, strides=(stride, stride), padding=_MARGIN)
        needs = total.convolve("image_embed", f"{path}.kernel", pairs * flops, needs=needs)
        size = pooled_size(size, stride)
    total.chain("action_state", ("hidden", "out"), pairs, needs=needs)
    return total


def count_positions(config: RunConfig, model: InverseDynamicsConfig) -> int:
    """Returns the pixels at which the residual convolutions of one sample are computed, over all its pairs."""
    return (derive_geometry(config).num_frames - 1) * math.prod(pooled_size(config.data.canvas, model.stride))


def pooled_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Returns the rows and columns that a 3 x 3 convolution with a margin of one and ``stride`` makes of ``size``."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1
