"""FLOPs of an action chunk: the closed form from the layout against the jaxpr of what the policy runs."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from tests.flops.steps import vary
from tests.sampling.acting import ACTING, expected_frames, frame_size, load_twin, make_policy
from wamjax.flops.chunk import count_chunk
from wamjax.flops.jaxpr import count_jaxpr
from wamjax.sampling.action_policy import ActionPolicy
from wamjax.sampling.latent_policy import LatentPolicy
from wamjax.sampling.queries_policy import QueriesPolicy

QUICK = ("fast_wam_idm",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ACTING]
)
def test_chunk_flops_equal_the_jaxpr(name: str) -> None:
    config = load_twin(name)
    policy: Any = make_policy(config)
    filled: list[int] = []
    if isinstance(policy, LatentPolicy):

        def fill(*arguments: Any, **passes: Any) -> Any:
            run = functools.partial(policy._fill_segments, **passes)
            filled.append(count_jaxpr(jax.make_jaxpr(run)(*arguments).jaxpr).total)
            return jax.eval_shape(run, *arguments)  # shapes are all that the walk needs: nothing is compiled

        vars(policy)["_fill"] = fill
    if isinstance(policy, ActionPolicy):

        def read(*arguments: Any) -> Any:
            filled.append(count_jaxpr(jax.make_jaxpr(policy._read)(*arguments).jaxpr).total)
            return jax.eval_shape(policy._read, *arguments)

        vars(policy)["read"] = read
    policy.reset(np.zeros(1, np.int32))
    for turn, count in enumerate(expected_frames(config)[: config.layout.num_blocks]):
        frames = np.zeros((1, count, *frame_size(config), 3), np.uint8)
        policy.observe(frames, np.zeros((1, config.data.state_dim), np.float32))
        counted = count_chunk(config, turn, is_executed=True)
        assert trace(policy, turn) == counted.denoise
        assert sum(filled) == counted.observe + (counted.reset if turn == 0 else 0)
        filled.clear()


def trace(policy: Any, turn: int) -> int:
    """FLOPs of one chunk, by the walk; the policy goes on as if it had been executed."""
    key = jax.random.key(0)
    if isinstance(policy, ActionPolicy):
        assert policy._known is not None
        return count_jaxpr(policy.denoise.trace(policy.params, *policy._known, key).jaxpr).total
    if isinstance(policy, QueriesPolicy):
        policy._is_due = False
        known = policy._images, policy._text, policy._states, 0
        return count_jaxpr(policy.answer.trace(policy.params, *known).jaxpr).total
    if not isinstance(policy, LatentPolicy):
        return count_jaxpr(policy.denoise.trace(policy.params, policy._batch, key).jaxpr).total
    assert policy._latents is not None
    traced = policy.denoise.trace(policy.params, policy._told, policy._latents[:, :1], policy._cache, key, chunk=turn)
    given = policy._window.num_given_actions(turn)
    sizes = policy.config.layout.actions_per_block - given, policy.config.data.action_dim
    policy._last, policy._is_due = np.zeros((1, *sizes), np.float32), False
    return count_jaxpr(traced.jaxpr).total


def test_actions_from_the_first_frame_cost_no_video() -> None:
    representation, joint, inverse = (load_twin(f"fast_wam_{name}") for name in ("robotwin", "joint", "idm"))
    costs = [count_chunk(config).denoise for config in (representation, joint, inverse)]
    assert costs[0] < costs[1] < costs[2]


def test_steps_that_stand_still_and_guidance_count_as_they_run() -> None:
    config = load_twin("dreamzero_5b")
    every = vary(config, sampling={"evaluated_steps": ()})
    alone = vary(every, sampling={"guidance": 1.0})
    assert count_chunk(every).denoise == 2 * count_chunk(config).denoise  # 16 steps, 8 of them evaluated
    assert count_chunk(every).denoise == 2 * count_chunk(alone).denoise
