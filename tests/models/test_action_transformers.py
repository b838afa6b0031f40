"""Action modules around a video transformer: the ways of actions into tokens and back, and the narrow expert."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.config.backbone import BlockConfig, VideoTransformerConfig
from wamjax.config.finetune import LoraConfig
from wamjax.config.systems import ActionExpertConfig, CategoryActionConfig, SharedActionConfig
from wamjax.errors import ConfigError
from wamjax.layout import ALL, Layout, Role, Segment
from wamjax.models.action_expert import ActionExpertTransformer
from wamjax.models.action_transformers import (
    CategoryActionTransformer,
    SharedActionTransformer,
)
from wamjax.models.block import Conditioning
from wamjax.models.stack import run_blocks
from wamjax.nn.lora import attach_lora
from wamjax.nn.rotary import rotary_table

VIDEO = VideoTransformerConfig(
    block=BlockConfig(width=12, num_heads=2, ffn_width=10),
    num_layers=2,
    in_channels=3,
    out_channels=3,
    time_width=6,
    text_width=5,
)
EXPERT = BlockConfig(width=8, num_heads=2, ffn_width=6, attention_width=12)
ACTIONS = 4
jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
rng = np.random.default_rng(0)


def randomised(module: Any) -> Any:
    """Fills every parameter with noise, so that nothing is zero or one."""
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.3, variable.shape), jnp.float32))
    return module


def noise(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def linear(module: Any, x: Any) -> np.ndarray:
    return np.asarray(x) @ np.asarray(module.kernel[...]) + np.asarray(module.bias[...])


def action_pass() -> Any:
    segment = Segment(role=Role.ACTION, order=0, num_tokens=ACTIONS, noised=True, has_loss=True)
    return Layout((segment,), {(Role.ACTION, Role.ACTION): ALL}).full_pass()


def test_category_model_sends_states_and_actions_through_the_networks_of_their_embodiment():
    config = CategoryActionConfig(video=VIDEO, action_dim=3, state_dim=4, hidden_width=7, num_categories=2)
    model = randomised(CategoryActionTransformer(jax.random.key(0), config))
    category = jnp.array([1, 0])
    tokens = model.embed_actions(noise(2, ACTIONS, 3), jnp.full((2, ACTIONS), 500.0), category)
    assert tokens.shape == (2, ACTIONS, 12)
    assert model.embed_states(noise(2, 1, 4), category).shape == (2, 1, 12)
    x = noise(2, ACTIONS, 12)
    out = model.decode_actions(x, category)
    for b, c in enumerate((1, 0)):
        decoder = model.action_decoder
        hidden = jnp.maximum(x[b] @ decoder.hidden.kernel[c] + decoder.hidden.bias[c], 0)
        np.testing.assert_allclose(out[b], hidden @ decoder.out.kernel[c] + decoder.out.bias[c], atol=1e-5)


def test_shared_model_predicts_actions_from_the_videos_norm_with_the_actions_own_time():
    model = randomised(SharedActionTransformer(jax.random.key(0), SharedActionConfig(video=VIDEO, action_dim=3)))
    actions, x = noise(2, ACTIONS, 3), noise(2, ACTIONS, 12)
    np.testing.assert_allclose(model.embed_actions(actions), linear(model.action_embed, actions), atol=1e-5)
    embedding, modulation = model.embed_action_times(jnp.array([[0.0, 900.0], [10.0, 20.0]]))
    video_embedding, _ = model.video.time_embedding(jnp.array([[0.0, 900.0], [10.0, 20.0]]))
    assert not np.allclose(embedding, video_embedding)
    conditioning = Conditioning(
        embedding=embedding,
        modulation=modulation,
        runs=((0, 1), (1, 3)),
        rotation=rotary_table(action_pass(), VIDEO.block.head_dim, 10_000.0),  # which a head does not read
        text=noise(2, 1, 12),
    )
    out = model.decode_actions(x, conditioning)
    table, slots = np.asarray(model.video.head_modulation[...]), [0, 1, 1, 1]
    shift, scale = (np.asarray(embedding)[:, slots] + table[i] for i in range(2))
    centred = np.asarray(x - x.mean(-1, keepdims=True))
    normed = centred / np.sqrt(x.var(-1, keepdims=True) + VIDEO.block.norm_eps)
    np.testing.assert_allclose(out, linear(model.action_out, normed * (1 + scale) + shift), atol=1e-4)


def test_expert_runs_its_narrow_tokens_through_the_videos_heads():
    config = ActionExpertConfig(video=VIDEO, expert=EXPERT, action_dim=3, state_dim=6)
    model = randomised(ActionExpertTransformer(jax.random.key(0), config))
    expert, layout_pass = model.expert, action_pass()
    assert expert.blocks.self_attention.query.kernel.shape == (2, 8, 2, 6)
    text = model.append_state(noise(2, 3, 5), noise(2, 6))
    assert text.shape == (2, 4, 5)

    @jit
    def run(actions: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
        conditioning = expert.condition(jnp.array([[300.0], [5.0]]), text, layout_pass, ((0, ACTIONS),), mask)
        tokens, _ = run_blocks(
            expert.blocks, expert.embed(actions), layout_pass, conditioning, None, remat="none", return_cache=False
        )
        return expert.decode(tokens)

    actions, mask = noise(2, ACTIONS, 3), jnp.array([[True, False, True, True]] * 2)
    out = run(actions, text, mask)
    assert out.shape == (2, ACTIONS, 3)
    np.testing.assert_array_equal(run(actions, text.at[:, 1].add(1.0), mask), out)  # a masked text token
    assert np.abs(run(actions, text.at[:, 3].add(1.0), mask) - out).max() > 1e-4  # the state


def test_attention_width_of_the_width_changes_nothing():
    same = dataclasses.replace(EXPERT, width=12)
    assert (same.head_dim, same.inner_width) == (6, 12)
    assert dataclasses.replace(EXPERT, width=12, attention_width=None).head_dim == 6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dataclasses.replace(EXPERT, attention_width=9), "attention_width 9 over 2 heads"),
        (
            lambda: ActionExpertConfig(
                video=VIDEO, expert=dataclasses.replace(EXPERT, attention_width=8), action_dim=3
            ),
            "2 heads of 4 and the video transformer 2 of 6",
        ),
        (lambda: SharedActionConfig(video=VIDEO, action_dim=0), "action_dim=0 of SharedActionConfig"),
        (lambda: CategoryActionConfig(video=VIDEO, num_categories=0), "num_categories=0"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(make, words):
    with pytest.raises(ConfigError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_update_of_every_kernel_is_refused_where_one_can_take_none():
    config = CategoryActionConfig(video=VIDEO, action_dim=3, state_dim=4, hidden_width=7, num_categories=2)
    model = CategoryActionTransformer(jax.random.key(0), config)
    with pytest.raises(ConfigError, match=r"names action_\w+\.\w+\.kernel, .*, which can take no low-rank update"):
        attach_lora(model, jax.random.key(1), LoraConfig(rank=2, alpha=2.0, targets=("*",)))
