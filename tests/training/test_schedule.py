"""The learning rate over steps, against optax and hand counts."""

import dataclasses

import numpy as np
import optax
import pytest

from wamjax.config.schema import OptimizerConfig
from wamjax.errors import ConfigError
from wamjax.training.schedule import make_schedule

CONFIG = OptimizerConfig(peak_lr=2.0, warmup_steps=4, final_lr_fraction=0.1)


def rates(num_steps=20, **fields):
    schedule = make_schedule(dataclasses.replace(CONFIG, **fields), num_steps)
    return np.array([schedule(step) for step in range(num_steps + 3)])


def test_cosine_is_that_of_optax():
    expected = optax.warmup_cosine_decay_schedule(0.0, 2.0, 4, 20, end_value=0.2)
    np.testing.assert_allclose(rates(), np.array([expected(step) for step in range(23)]), rtol=1e-6)


@pytest.mark.parametrize(("shape", "midway"), [("linear", 0.5), ("one_minus_sqrt", 1 - 0.5**0.5)])
def test_wsd_warms_up_stays_and_decays_over_its_last_share(shape, midway):
    found = rates(schedule="wsd", decay_fraction=0.4, decay_shape=shape)  # 8 of 20 steps decay
    np.testing.assert_allclose(found[:5], [0.0, 0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(found[4:13], 2.0, rtol=1e-6)
    assert found[16] == pytest.approx(2.0 * (0.1 + 0.9 * midway))
    assert np.all(np.diff(found[12:21]) < 0)
    np.testing.assert_allclose(found[20:], 0.2, rtol=1e-6)


def test_constant_stays_at_the_peak_and_needs_no_warmup():
    np.testing.assert_allclose(rates(schedule="constant")[4:], 2.0)
    np.testing.assert_allclose(rates(schedule="constant", warmup_steps=0), 2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 20}, r"warmup_steps=20 must be less than the 20 steps of the schedule"),
        ({"schedule": "wsd", "warmup_steps": 11, "decay_fraction": 0.5}, r"20 steps .*, 10 of them decay"),
        ({"schedule": "constant", "warmup_steps": 30}, r"warmup_steps=30"),
    ],
)
def test_warmup_that_leaves_no_room_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        rates(**fields)
