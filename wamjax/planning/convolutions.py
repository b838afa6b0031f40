"""Activations of an inverse-dynamics model, which has pixels where other models have tokens."""

from __future__ import annotations

import math

from wamjax.config.geometry import derive_geometry
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import RunConfig
from wamjax.flops.inverse_dynamics import count_positions
from wamjax.planning.activations import Activations


def plan_convolutions(config: RunConfig, model: InverseDynamicsConfig, *, batch: int, itemsize: int) -> Activations:
    """Returns what the backward pass finds: the inputs of all convolutions; XLA keeps little of the rectifiers.

    Of UniPi's model at 256 pairs a TPU v5e's compiled step has 0.21 GiB in all in bf16 and 0.52 GiB in fp32.

    Args:
      config: The run.
      model: Its model.
      batch: Samples of a device.
      itemsize: Bytes of a value in the compute dtype.
    """
    pixels = batch * (derive_geometry(config).num_frames - 1) * math.prod(config.data.canvas)
    layer = batch * count_positions(config, model) * model.width * itemsize
    kept = {"pairs": pixels * 6 * itemsize, "convolutions": model.num_layers * layer}
    return Activations(
        kept=sum(kept.values()),
        offloaded=0,
        repeated=0,
        block=layer,  # the gradient of one layer's output
        attention=0,
        by_array=kept,
    )
