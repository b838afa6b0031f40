"""Forward and backward FLOPs, added up along the way gradients flow.

A product's backward pass costs one more product per operand that needs a gradient: the kernel if it is trained, the
input if anything before it is. ``Tally`` follows both: every method takes whether its inputs need gradients and
returns whether its output does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wamjax.config.finetune import UPDATE_OF, is_trained, matches
from wamjax.config.schema import FinetuneConfig
from wamjax.flops import layers
from wamjax.flops.kernels import Kernel


class Tally:
    """FLOPs by component.

    Attributes:
      forward: Of one forward pass.
      backward: What a backward pass adds.
      unused: Share of ``forward`` that no gradient needs, so that rematerialisation leaves it out.
      turned: Share of ``forward`` that rotary embeddings multiply by a constant matrix.
    """

    def __init__(self, components: Iterable[str], kernels: Mapping[str, Kernel], finetune: FinetuneConfig) -> None:
        self.forward: dict[str, int] = dict.fromkeys(components, 0)
        self.backward: dict[str, int] = dict.fromkeys(self.forward, 0)
        self.unused: dict[str, int] = dict.fromkeys(self.forward, 0)
        self.turned: dict[str, int] = dict.fromkeys(self.forward, 0)
        self._kernels, self._finetune = kernels, finetune

    def trains(self, *paths: str) -> bool:
        """Returns whether one of the parameters at ``paths`` is trained."""
        return any(is_trained(path, self._finetune) for path in paths)

    def linear(self, component: str, path: str, tokens: int, *, needs: bool, is_output_used: bool = True) -> bool:
        """Adds one copy of a dense layer over ``tokens``.

        Args:
          component: Where it counts.
          path: Of the kernel; the bias is beside it.
          tokens: Rows.
          needs: Whether the input needs a gradient.
          is_output_used: Whether some gradient needs the value of the output.

        Returns:
          Whether the output needs a gradient.
        """
        fan_in, fan_out, _ = self._kernels[path]
        name = path.rpartition(".")[2]
        own, trained = layers.linear(tokens, fan_in, fan_out), self.trains(path)
        self.forward[component] += own
        self.backward[component] += own * (trained + needs)
        self.unused[component] += 0 if is_output_used else own
        if has_update := name in UPDATE_OF and matches(path, self._finetune.lora_targets):
            down, up = (layers.linear(tokens, fan, self._finetune.lora_rank) for fan in (fan_in, fan_out))
            self.forward[component] += down + up
            self.backward[component] += down * (1 + needs) + 2 * up
            self.unused[component] += 0 if is_output_used else up
        return needs or trained or has_update or self.trains(path.removesuffix("kernel") + "bias")

    def scores(self, component: str, flops: int, *, query: bool, key: bool, value: bool) -> bool:
        """Adds attention scores and weighted values of ``flops`` in all, half and half.

        The gradient of the weights is one product if queries or keys need a gradient; queries, keys and values are one
        more each.
        """
        self.forward[component] += flops
        self.backward[component] += flops // 2 * ((query or key) + query + key + value)
        return query or key or value

    def turn(self, component: str, flops: int, *, needs: bool) -> None:
        """Adds the product of heads and the constant matrix that exchanges their halves (``nn.rotary``)."""
        self.forward[component] += flops
        self.backward[component] += flops * needs
        self.turned[component] += flops

    def add(self, other: Tally, times: int) -> None:
        """Adds ``times`` what ``other`` holds."""
        for mine, theirs in zip(self._parts(), other._parts(), strict=True):
            for name, flops in theirs.items():
                mine[name] += times * flops

    def training(self) -> dict[str, int]:
        """Returns forward plus backward."""
        return {name: self.forward[name] + self.backward[name] for name in self.forward}

    def recomputed(self) -> dict[str, int]:
        """Returns what rematerialisation computes a second time: the forward pass but what no gradient needs."""
        return {name: self.forward[name] - self.unused[name] for name in self.forward}

    def _parts(self) -> tuple[dict[str, int], ...]:
        return self.forward, self.backward, self.unused, self.turned
