"""Activations of an inverse-dynamics model, which has pixels where other models have tokens."""

from __future__ import annotations

import math

from wamjax.config.geometry import derive_geometry
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import RunConfig
from wamjax.flops.inverse_dynamics import count_positions, pooled_size
from wamjax.planning.activations import Activations


def plan_convolutions(config: RunConfig, model: InverseDynamicsConfig, *, batch: int, itemsize: int) -> Activations:
    """Returns what the backward pass finds: the inputs of all convolutions, and a bit of every rectifier.

    A TPU packs the bits of 32 rows into a word. Of UniPi's model a v5e's compiled steps have 1.018 GiB (1,024 pairs of
    a device, bf16; planned within 0.2 %), 0.454 (256 pairs, six layers; 0.7 %) and 0.517 (256 pairs, fp32; 4 % below);
    of 256 pairs in bf16 they have 0.205, one layer's output less than is planned (27 % above).

    Args:
      config: The run.
      model: Its model.
      batch: Samples of a device.
      itemsize: Bytes of a value in the compute dtype.
    """
    pixels = batch * (derive_geometry(config).num_frames - 1) * math.prod(config.data.canvas)
    layer = batch * count_positions(config, model) * model.width * itemsize
    rows, _ = pooled_size(config.data.canvas, model.stride)
    bits = layer // (itemsize * rows) * 4 * math.ceil(rows / 32)
    kept = {
        "pairs": pixels * 6 * itemsize,
        "convolutions": model.num_layers * layer,
        "rectifiers": model.num_layers * bits,
    }
    return Activations(
        kept=sum(kept.values()),
        offloaded=0,
        repeated=0,
        block=layer,  # the gradient of one layer's output
        attention=0,
        by_array=kept,
    )
