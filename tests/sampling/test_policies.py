"""The policy of every system: with its cache it acts as it does when every step computes the whole sequence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.flops.steps import vary
from tests.sampling.acting import SYSTEMS, expected_frames, load_twin, make_policy, roll_out
from wamjax.config.schema import RunConfig
from wamjax.errors import ConfigError
from wamjax.layout import Layout, Pass, build_layout
from wamjax.nn.multihead import KeysValues
from wamjax.sampling import latent_policy, stages
from wamjax.sampling.policy import Policy

WITHOUT_CACHE = ("cosmos_policy_libero", "cosmos_policy_robocasa", "summer_22b")
CHUNKED = sorted({path.stem for path in SYSTEMS.glob("[!_]*.py")} - set(WITHOUT_CACHE))
QUICK = ("fast_wam_libero",)


class Uncached:
    """Stands in for the cache: keeps clean tokens, which every pass then computes again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
        self._predict, self._layout = stages._predict, layout
        monkeypatch.setattr(stages, "_predict", self.predict)
        monkeypatch.setattr(latent_policy, "fill_cache", self.fill)

    def fill(
        self, model: Any, told: Any, tokens: Any, layout_pass: Pass, layout: Layout, past: Any, config: RunConfig
    ) -> Any:
        # A dim in front, so that the batch is where a cache of keys and values has it.
        kept: Any = {} if past is None else dict(past.keys)
        for role, own in tokens.items():
            before = [kept[role]] if role in kept else []
            kept[role] = jnp.concatenate([*before, own[None]], axis=2)
        return KeysValues(kept, {})  # type: ignore[arg-type]  # tokens in the place of keys

    def predict(
        self, model: Any, told: Any, tokens: Any, ids: Any, layout_pass: Pass, past: Any, config: RunConfig
    ) -> Any:
        whole = self._layout.make_pass((*layout_pass.past, *layout_pass.segments), ())
        known = {role: kept[0] for role, kept in ({} if past is None else past.keys).items()}
        return self._predict(model, told, {**known, **tokens}, ids, whole, None, config)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHUNKED]
)
def test_cached_policy_acts_as_the_uncached_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_twin(name)
    cached = roll_out(make_policy(config), config)
    Uncached(monkeypatch, build_layout(config))
    uncached = roll_out(make_policy(config), config)
    for one, other in zip(cached, uncached, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4, rtol=1e-4)
        if one.video is not None:
            difference = np.asarray(one.video, np.int32) - np.asarray(other.video, np.int32)
            assert np.abs(difference).max() <= 1  # pixel levels
