"""Matrix products of the optimizer: none but Muon's, once per step whatever the batch.

Not among the FLOPs of training, by convention; beside them here, so that a whole step can be accounted for.
"""

from __future__ import annotations

from wamjax.config.finetune import is_trained
from wamjax.config.schema import RunConfig
from wamjax.flops import layers
from wamjax.flops.parameters import list_parameters

_ITERATIONS = 5  # of Newton and Schulz's method, the default of ``optax.contrib.scale_by_muon``


def optimizer_flops(config: RunConfig) -> int:
    """Returns the FLOPs of one optimizer step's matrix products.

    Muon orthogonalises the update of every trained kernel ``[m n]`` of the stacked blocks, m <= n, by iterations of
    ``A = X X^T``, ``B = b A + c A A``, ``X = a X + B X``: ``4 m^2 n + 2 m^3`` each.

    Source: Jordan et al., https://kellerjordan.github.io/posts/muon.
    """
    if config.optimizer.kind != "muon":
        return 0
    total = 0
    for path, parameter in list_parameters(config).items():
        is_in_stack = "blocks" in path.split(".")
        if is_in_stack and parameter.takes_update and is_trained(path, config.finetune):
            m, n = sorted(parameter.shape)
            iteration = 2 * layers.linear(m, n, m) + layers.linear(m, m, m)
            total += parameter.copies * _ITERATIONS * iteration
    return total
