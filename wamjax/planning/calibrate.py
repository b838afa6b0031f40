"""Fits the efficiencies that a step time rests on to the step times of runs.

One run gives one number and the model has eight shares, so the shares are not free: each is drawn to its assumed value
as hard as its band is narrow (the band is read as a 90 % interval of a normal prior), and the fit is the most probable
set of shares given the measured times. What no run depends on keeps its assumed value. Bands of the result come from
the curvature of the posterior at the fit, and never widen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout
from wamjax.planning.assumption import Band
from wamjax.planning.efficiency import SHARES, Efficiencies
from wamjax.planning.exchange import list_exchanges
from wamjax.planning.fabric import Fabric
from wamjax.planning.machine import Machine
from wamjax.planning.placement import place_parameters
from wamjax.planning.plan import decode_seconds, execution_of, plan_on
from wamjax.planning.roofline import plan_time

_NINETY = 1.645  # standard deviations from the mean to either end of a 90 % interval
_LEAST_SHARE = 0.01
# What the model leaves out (latency, stragglers, kernels launched one by one) is no noise of a clock: a measured time
# is not taken to be more exact than this, however often it was repeated.
_MODEL_ERROR = 0.02
_SEEN = 1e-3  # a share whose change by its whole band moves no time by more than this was not seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """One measured step time.

    Attributes:
      name: The run.
      predict: Efficiencies -> seconds of a step, expected.
      step_s: What was measured.
      error: Its relative standard error.
    """

    name: str
    predict: Callable[[Efficiencies], float]
    step_s: float
    error: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted efficiencies.

    Attributes:
      efficiencies: Assumed ones with the fitted shares in their place.
      fitted: Names of the shares that a measured time depends on.
      times: (run, measured, predicted before, predicted after), in seconds.
    """

    efficiencies: Efficiencies
    fitted: tuple[str, ...]
    times: tuple[tuple[str, float, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the fitted shares as ``--efficiencies`` reads them, with what they were fitted to as a remark."""
        shares = self.efficiencies.to_json()
        runs = [
            {"run": name, "step_s": measured, "assumed_step_s": before, "fitted_step_s": after}
            for name, measured, before, after in self.times
        ]
        return {**{name: shares[name] for name in self.fitted}, "_fitted_to": runs}


def observe(name: str, config: RunConfig, machine: Machine, step_s: float, error: float = 0.0) -> Observation:
    """Returns the observation that steps of ``config`` take ``step_s`` seconds on ``machine``.

    Raises:
      ConfigError: There is no predicted time to hold beside it: no listed peak for the compute dtype.
    """
    layout = build_layout(config)
    on = plan_on(config, layout, machine)
    if on.time is None:
        raise ConfigError(f"{name} cannot be fitted: {on.no_time}")
    shard, memory = on.shard, on.memory
    count = count_flops(config, layout, execution_of(shard, machine))
    exchanges = list_exchanges(shard, place_parameters(config, shard.mesh, shard.rules.parameters))
    fabric, decode_s = Fabric(machine, shard.mesh), decode_seconds(config, machine)

    def predict(efficiencies: Efficiencies) -> float:
        return plan_time(count, shard, memory, exchanges, machine, efficiencies, fabric, decode_s=decode_s).step_s.mid

    return Observation(name=name, predict=predict, step_s=step_s, error=error)


def fit_efficiencies(assumed: Efficiencies, observations: Sequence[Observation]) -> Fit:
    """Returns the most probable efficiencies given the measured times.

    Args:
      assumed: The prior: mean and 90 % interval of every share.
      observations: Runs on chips that ``assumed`` is for.
    """
    assert observations, "nothing to fit to"
    seen = tuple(name for name in SHARES if _is_seen(assumed, name, observations))
    mean = np.array([getattr(assumed, name).mid for name in seen])
    spread = np.array([_spread(getattr(assumed, name)) for name in seen])
    noise = np.array([math.hypot(one.error, _MODEL_ERROR) for one in observations])
    measured = np.log([one.step_s for one in observations])

    def residuals(shares: np.ndarray) -> np.ndarray:
        efficiencies = _with_mids(assumed, seen, shares)
        predicted = np.log([one.predict(efficiencies) for one in observations])
        return np.concatenate([(predicted - measured) / noise, (shares - mean) / spread])

    found = least_squares(residuals, mean, bounds=(_LEAST_SHARE, 1.0), x_scale=spread)
    deviation = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)))
    names = ", ".join(one.name for one in observations)
    bands = {
        name: _band(getattr(assumed, name), float(mid), _NINETY * float(sigma))
        for name, mid, sigma in zip(seen, found.x, deviation, strict=True)
    }
    sources = {
        name: f"fitted to {names}; assumed {getattr(assumed, name).mid:g}: {assumed.sources.get(name, 'no source')}"
        for name in seen
    }
    fitted = dataclasses.replace(assumed, **bands, sources={**assumed.sources, **sources})
    times = tuple((one.name, one.step_s, one.predict(assumed), one.predict(fitted)) for one in observations)
    return Fit(efficiencies=fitted, fitted=seen, times=times)


def describe(assumed: Efficiencies, fit: Fit) -> str:
    """Returns what the fit did: times, then shares."""
    lines = [f"{'step time, s':40}{'measured':>12}{'assumed':>12}{'fitted':>12}{'error':>16}"]
    for name, measured, before, after in fit.times:
        errors = f"{before / measured - 1:+.1%} -> {after / measured - 1:+.1%}"
        lines.append(f"  {name:38}{measured:12.4g}{before:12.4g}{after:12.4g}{errors:>18}")
    lines.append(f"{'share of the listed rate':40}{'assumed':>24}{'fitted':>24}")
    for name in SHARES:
        before, after = getattr(assumed, name), getattr(fit.efficiencies, name)
        fitted = _describe_band(after) if name in fit.fitted else "no run depends on it"
        lines.append(f"  {name.replace('_', ' '):38}{_describe_band(before):>24}{fitted:>24}")
    return "\n".join(lines)


def _describe_band(band: Band) -> str:
    return f"{band.mid:.3f} ({band.low:.2f} to {band.high:.2f})"


def _spread(band: Band) -> float:
    """Returns the standard deviation of a prior whose 90 % interval is ``band``."""
    return max((band.high - band.low) / (2 * _NINETY), 1e-3)


def _is_seen(assumed: Efficiencies, name: str, observations: Sequence[Observation]) -> bool:
    """Returns whether any predicted time depends on a share."""
    band = getattr(assumed, name)
    ends = [_with_mids(assumed, (name,), np.array([max(end, _LEAST_SHARE)])) for end in (band.low, band.high)]
    return any(abs(math.log(one.predict(ends[0]) / one.predict(ends[1]))) > _SEEN for one in observations)


def _with_mids(efficiencies: Efficiencies, names: Sequence[str], mids: np.ndarray) -> Efficiencies:
    """Returns ``efficiencies`` with other expected values, bands stretched where they would not hold them."""
    bands = {}
    for name, mid in zip(names, mids.tolist(), strict=True):
        band = getattr(efficiencies, name)
        bands[name] = Band(low=min(band.low, mid), mid=mid, high=max(band.high, mid))
    return dataclasses.replace(efficiencies, **bands)


def _band(prior: Band, mid: float, half: float) -> Band:
    """Returns the posterior band: no wider than the prior's on either side, within what a share can be."""
    below, above = min(half, prior.mid - prior.low), min(half, prior.high - prior.mid)
    least = 0.0 if prior.low == 0.0 else _LEAST_SHARE
    return Band(low=min(max(mid - below, least), mid), mid=mid, high=max(min(mid + above, 1.0), mid))
