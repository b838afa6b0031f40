"""Activations of an inverse-dynamics model, which has pixels where other models have tokens."""

from __future__ import annotations

import math

from wamjax.config.geometry import derive_geometry
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import RunConfig
from wamjax.flops.inverse_dynamics import count_positions
from wamjax.planning.activations import Activations

_FP32 = 4


def plan_convolutions(config: RunConfig, model: InverseDynamicsConfig, *, batch: int, itemsize: int) -> Activations:
    """Returns what the backward pass finds: the input of every convolution, and what each rectifier let through.

    Args:
      config: The run.
      model: Its model.
      batch: Samples of a device.
      itemsize: Bytes of a value in the compute dtype.
    """
    pixels = batch * (derive_geometry(config).num_frames - 1) * math.prod(config.data.canvas)
    layer = batch * count_positions(config, model) * model.width * itemsize
    kept = {"pairs": pixels * 6 * itemsize, "convolutions": (2 * model.num_layers + 1) * layer}
    return Activations(
        kept=sum(kept.values()),
        offloaded=0,
        repeated=0,
        # Gradients of a layer's output, of its rectifier and of its input; and the frames in fp32.
        block=3 * layer + pixels * 3 * _FP32,
        attention=0,
        by_array=kept,
    )
