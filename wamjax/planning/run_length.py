"""How long a run is: steps, solved from whichever of steps, tokens, ZFLOPs, money or time is given.

A length (steps, tokens or ZFLOPs) decides the steps; two that disagree are refused. Money and time are limits: alone
they decide as many steps as they allow, beside a length they refuse one that does not fit.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from wamjax.errors import ConfigError

ZETTA = 10**21

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for; None where it was not.

    Attributes:
      steps: Optimizer steps.
      tokens: Tokens of all streams, without padding, over all samples.
      zflops: Model FLOPs in units of 1e21.
      budget_usd: Money for the chips.
      deadline_s: Wall time.
    """

    steps: int | None = None
    tokens: float | None = None
    zflops: float | None = None
    budget_usd: float | None = None
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"--{_FLAGS[field.name]}={value:g}; expected more than 0, and finite")


_FLAGS = {
    "steps": "steps",
    "tokens": "tokens",
    "zflops": "zflops",
    "budget_usd": "budget_usd",
    "deadline_s": "deadline",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What one step is.

    Attributes:
      batch: Samples.
      tokens_per_sample: Without padding.
      model_flops_per_sample: Training FLOPs.
      elapsed_s: Steps -> expected wall time, losses included; None without a machine.
      usd: Steps -> expected money; None without a machine or a price.
    """

    batch: int
    tokens_per_sample: int
    model_flops_per_sample: int
    elapsed_s: Callable[[int], float] | None = None
    usd: Callable[[int], float | None] | None = None


def parse_duration(text: str) -> float:
    """Returns the seconds of ``14d``, ``36h``, ``1d12h`` or ``90m``.

    Raises:
      ConfigError: The text is no duration.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"--deadline={text} is no duration; write days, hours or minutes, such as 14d, 36h or 1d12h")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def solve_steps(wanted: Wanted, rates: Rates, default: int) -> tuple[int, str]:
    """Returns the steps of the run and what decided them.

    Args:
      wanted: What was asked for.
      rates: What one step is.
      default: Steps where nothing was asked for (``config.train.num_steps``).

    Raises:
      ConfigError: Two lengths disagree, a limit is exceeded or allows no step, or a limit needs a machine.
    """
    lengths = _lengths(wanted, rates)
    if len(set(lengths.values())) > 1:
        (first, steps), (second, other) = list(lengths.items())[:2]
        if steps == other:
            second, other = list(lengths.items())[2]
        raise ConfigError(
            f"--{first}={_given(wanted, first)} is {steps:,} steps of {rates.batch:,} samples and "
            f"--{second}={_given(wanted, second)} is {other:,}; give one of them"
        )
    limits = _limits(wanted, rates)
    if lengths:
        flag, steps = next(iter(lengths.items()))
    elif limits:
        flag, steps = min(limits.items(), key=lambda item: item[1])
    else:
        return default, "config.train.num_steps"
    for limit, most in limits.items():
        if steps > most:
            raise ConfigError(
                f"--{flag}={_given(wanted, flag)} is {steps:,} steps and --{limit}={_given(wanted, limit)} allows "
                f"{most:,} by the expected step time; give fewer, or raise the limit"
            )
    if steps < 1:
        raise ConfigError(f"--{flag}={_given(wanted, flag)} does not allow a single step on this machine")
    return steps, f"--{flag}"


def _lengths(wanted: Wanted, rates: Rates) -> dict[str, int]:
    """Returns flag -> steps of what states a length."""
    lengths = {}
    if wanted.steps is not None:
        lengths["steps"] = wanted.steps
    if wanted.tokens is not None:
        lengths["tokens"] = _whole_steps(wanted.tokens / (rates.batch * rates.tokens_per_sample))
    if wanted.zflops is not None:
        lengths["zflops"] = _whole_steps(wanted.zflops * ZETTA / (rates.batch * rates.model_flops_per_sample))
    return lengths


def _whole_steps(steps: float) -> int:
    """Rounds up, but for what rounding of a float has added: the length that a plan prints gives its own steps back."""
    return math.ceil(steps * (1 - 1e-12))


def _limits(wanted: Wanted, rates: Rates) -> dict[str, int]:
    """Returns flag -> steps that a limit allows."""
    limits = {}
    if wanted.deadline_s is not None:
        if rates.elapsed_s is None:
            raise ConfigError("--deadline needs a machine to be a number of steps; give --topology or --chips")
        limits["deadline"] = _most_steps(rates.elapsed_s, wanted.deadline_s)
    if wanted.budget_usd is not None:
        if rates.usd is None or rates.usd(1) is None:
            raise ConfigError(
                "--budget_usd needs a machine with a price to be a number of steps; give --topology or --chips, and "
                "--prices where the chip has none"
            )
        limits["budget_usd"] = _most_steps(rates.usd, wanted.budget_usd)
    return limits


def _most_steps(of: Callable[[int], float | None], limit: float) -> int:
    """Returns the most steps of which ``of``, which grows with them, is at most ``limit``; 0 if none is."""

    def allows(steps: int) -> bool:
        value = of(steps)
        return value is not None and value <= limit

    if not allows(1):
        return 0
    most = 1
    while allows(2 * most):
        most *= 2
    refused = 2 * most
    while refused - most > 1:
        middle = (most + refused) // 2
        most, refused = (middle, refused) if allows(middle) else (most, middle)
    return most


def _given(wanted: Wanted, flag: str) -> str:
    value = getattr(wanted, next(name for name, known in _FLAGS.items() if known == flag))
    return f"{value / 3600:g}h" if flag == "deadline" else f"{value:g}" if isinstance(value, float) else str(value)
