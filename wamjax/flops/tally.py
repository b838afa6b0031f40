"""Forward and backward FLOPs, added up along the way gradients flow.

A product's backward pass costs one more product per operand that needs a gradient: the kernel if it is trained, the
input if anything before it is. ``Tally`` follows both: every method takes whether its inputs need gradients and
returns whether its output does. What rematerialisation computes again is added up beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wamjax.config.choices import REPEATING, Remat
from wamjax.config.finetune import is_trained, matches
from wamjax.config.schema import FinetuneConfig
from wamjax.flops import layers
from wamjax.flops.parameters import Parameter
from wamjax.layout.kernels import Computed

# What policies of ``models.remat`` leave to the backward pass: products with kernels, the turn of a rotary embedding,
# scores that are small enough to be kept, and attention as a whole.
_TURNED_AGAIN: tuple[Remat, ...] = ("none", "products", *REPEATING)
_SCORES_AGAIN: tuple[Remat, ...] = ("attention", "self_attention", "offload")
_ATTENTION_AGAIN: tuple[Remat, ...] = ("full",)
_CROSS_AGAIN: tuple[Remat, ...] = ("self_attention", "full")


class Tally:
    """FLOPs by component.

    Attributes:
      forward: Of one forward pass.
      backward: What a backward pass adds.
      again: What the backward pass computes a second time, if it is one of rematerialised blocks.
    """

    def __init__(
        self,
        components: Iterable[str],
        parameters: Mapping[str, Parameter],
        finetune: FinetuneConfig,
        remat: Remat | None = None,
    ) -> None:
        """Makes an empty tally.

        Args:
          components: Names to count under.
          parameters: Of the model, by path.
          finetune: Which of them are trained.
          remat: What the backward pass finds; None for everything.
        """
        self.forward: dict[str, int] = dict.fromkeys(components, 0)
        self.backward: dict[str, int] = dict.fromkeys(self.forward, 0)
        self.again: dict[str, int] = dict.fromkeys(self.forward, 0)
        self._parameters, self._finetune, self._remat = parameters, finetune, remat

    def empty(self) -> Tally:
        """Returns an empty tally of the same model, of which nothing is computed again."""
        return Tally(self.forward, self._parameters, self._finetune)

    def trains(self, *paths: str) -> bool:
        """Returns whether one of the parameters at ``paths`` is there and trained."""
        return any(path in self._parameters and is_trained(path, self._finetune) for path in paths)

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
        kernel = self._parameters[path]
        fan_in, fan_out = kernel.shape
        own, trained = layers.linear(tokens, fan_in, fan_out), self.trains(path)
        self.forward[component] += own
        self.backward[component] += own * (trained + needs)
        self._recompute(component, own * is_output_used, REPEATING)
        has_update = kernel.takes_update and matches(path, self._finetune.lora_targets)
        if has_update:
            down, up = (layers.linear(tokens, fan, self._finetune.lora_rank) for fan in (fan_in, fan_out))
            self.forward[component] += down + up
            self.backward[component] += down * (1 + needs) + 2 * up
            self._recompute(component, down + up * is_output_used, REPEATING)
        bias = path.removesuffix("kernel") + "bias"
        return needs or trained or has_update or self.trains(bias)

    def convolve(self, component: str, path: str, flops: int, *, needs: bool) -> bool:
        """Adds a convolution of ``flops``, of which both gradients cost as much; arguments and result as ``linear``."""
        trained = self.trains(path)
        self.forward[component] += flops
        self.backward[component] += flops * (trained + needs)
        return needs or trained or self.trains(path.removesuffix("kernel") + "bias")

    def chain(self, component: str, paths: Iterable[str], tokens: int, *, needs: bool = False) -> bool:
        """Adds dense layers at ``paths``, one after the other; returns whether the last output needs a gradient."""
        for path in paths:
            needs = self.linear(component, f"{path}.kernel", tokens, needs=needs)
        return needs

    def attend(
        self,
        component: str,
        width: int,
        computed: Iterable[Computed],
        *,
        query: bool,
        key: bool,
        value: bool,
        is_cross: bool = False,
    ) -> bool:
        """Adds attention of ``width`` over the pairs ``computed``.

        The gradient of the weights is one product if queries or keys need a gradient; queries, keys and values are one
        more each. What cannot be kept of the scores is one more.
        """
        needs = query or key or value
        for pairs in computed:
            forward, backward, kept, rows = (
                layers.attention_scores(count, width) // 2
                for count in (pairs.forward, pairs.backward, pairs.keepable, pairs.rows)
            )
            gradients = 4 if pairs.is_fused else (query or key) + query + key + value
            self.forward[component] += 2 * forward
            self.backward[component] += needs * (gradients * backward + backward - kept + rows)
            is_repeated = self._remat in (_CROSS_AGAIN if is_cross and pairs.is_named else _ATTENTION_AGAIN)
            self.again[component] += needs * 2 * forward * is_repeated
            self._recompute(component, needs * kept * (not is_repeated), _SCORES_AGAIN)
        return needs

    def recur(self, component: str, flops: tuple[int, int], *, needs: bool) -> bool:
        """Adds a recurrence of ``flops`` forward and backward, whose gradients come together, wanted or not."""
        forward, backward = flops
        self.forward[component] += forward
        self.backward[component] += needs * backward
        self._recompute(component, needs * forward, _ATTENTION_AGAIN)
        return needs

    def turn(self, component: str, flops: int, *, needs: bool) -> None:
        """Adds the product of heads and the constant matrix that exchanges their halves (``nn.rotary``)."""
        self.forward[component] += flops
        self.backward[component] += flops * needs
        self._recompute(component, flops, _TURNED_AGAIN)

    def add(self, other: Tally, times: int) -> None:
        """Adds ``times`` what ``other`` holds; nothing is computed again where there is no backward pass."""
        is_differentiated = any(other.backward.values())
        for mine, theirs in ((self.forward, other.forward), (self.backward, other.backward), (self.again, other.again)):
            for name, flops in theirs.items():
                mine[name] += times * flops * (theirs is not other.again or is_differentiated)

    def training(self) -> dict[str, int]:
        """Returns forward plus backward, recomputation included."""
        return {name: self.forward[name] + self.backward[name] + self.again[name] for name in self.forward}

    def _recompute(self, component: str, flops: int, policies: tuple[Remat, ...]) -> None:
        self.again[component] += flops * (self._remat in policies)
