"""The whole run on a machine: wall time with what is lost, chip-hours, money and energy, for any number of steps.

Puts ``planning.goodput`` and ``planning.cost`` on top of a step time. The two ends of a band are the same run with the
step at its fastest and at its slowest.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from wamjax.config.schema import RunConfig
from wamjax.planning.assumption import Band
from wamjax.planning.cost import Cost, Prices, plan_cost
from wamjax.planning.goodput import Goodput, GoodputAssumptions, plan_goodput
from wamjax.planning.machine import Machine

_HOUR_S = 3600.0
_FORWARD_SHARE = 1 / 3  # of a training step: forward is one of three products per kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Economy:
    """What a run of any length costs on a machine.

    Attributes:
      config: The run.
      machine: The machine.
      step_s: Seconds of a step.
      busy_s: Those of them in which it does not wait for its batch.
      checkpoint_bytes: Of one checkpoint.
      prices: Of chips.
      assumptions: Of storage and failures; None for the defaults.
    """

    config: RunConfig
    machine: Machine
    step_s: Band
    busy_s: Band
    checkpoint_bytes: int
    prices: Prices
    assumptions: GoodputAssumptions | None = None

    def goodput(self, steps: int, end: Literal["low", "mid", "high"]) -> Goodput:
        """Returns where the wall time of ``steps`` steps goes, each as long as ``end`` of the band says."""
        busy_s = getattr(self.busy_s, end)
        checkpoint, evaluate = self.config.checkpoint, self.config.evaluate
        validations = steps // evaluate.every_steps if evaluate.every_steps else 0
        return plan_goodput(
            checkpoint_bytes=self.checkpoint_bytes,
            num_hosts=self.machine.num_hosts,
            num_chips=self.machine.num_chips,
            run_s=steps * busy_s,
            data_wait_s=steps * (getattr(self.step_s, end) - busy_s),
            step_s=busy_s,
            checkpoint_every_s=(checkpoint.every_steps or steps) * busy_s,
            evaluation_s=validations * evaluate.num_batches * busy_s * _FORWARD_SHARE,
            assumptions=self.assumptions,
        )

    def elapsed_s(self, steps: int) -> float:
        """Returns the expected wall time of ``steps``."""
        return self.goodput(steps, "mid").elapsed_s

    def usd(self, steps: int) -> float | None:
        """Returns the expected money of ``steps``; None where the chip has no price."""
        return self._cost(self.elapsed_s(steps)).usd

    def outlook(self, steps: int) -> Outlook:
        """Returns everything of a run of ``steps``."""
        ends = [self.goodput(steps, "low"), self.goodput(steps, "mid"), self.goodput(steps, "high")]
        costs = [self._cost(goodput.elapsed_s) for goodput in ends]
        money = [cost.usd for cost in costs if cost.usd is not None]
        return Outlook(
            goodput=ends[1],
            cost=costs[1],
            elapsed_s=_band([goodput.elapsed_s for goodput in ends]),
            chip_hours=_band([cost.chip_hours for cost in costs]),
            usd=_band(money) if money else None,
        )

    def _cost(self, elapsed_s: float) -> Cost:
        hours = self.machine.num_chips * elapsed_s / _HOUR_S
        return plan_cost(chip=self.machine.chip, chip_hours=hours, prices=self.prices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """A run of so many steps.

    Attributes:
      goodput: Where its expected wall time goes.
      cost: What that costs.
      elapsed_s: Wall time.
      chip_hours: Chip-hours.
      usd: Money on demand; None where the chip has no price.
    """

    goodput: Goodput
    cost: Cost
    elapsed_s: Band
    chip_hours: Band
    usd: Band | None


def _band(values: list[float]) -> Band:
    return Band(low=values[0], mid=values[1], high=values[2])
