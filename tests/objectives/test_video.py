"""Clips whose first frame is held: what is noised, what carries a loss, and what the model is shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.steps import build, closed_form, vary, walk_evaluation, walk_step
from tests.sampling.acting import random_params
from tests.tiny import tiny_batch
from wamjax.config.backbone import BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.schema import LayoutConfig, OptimizerConfig, RunConfig, TrainConfig
from wamjax.errors import ConfigError
from wamjax.layout import build_layout
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.objectives.video import VideoObjective

# Four frames of 2 x 3 tokens, padded from 24 to 28.
HELD = RunConfig(
    backbone=VideoTransformerConfig(
        block=BlockConfig(width=32, num_heads=2, ffn_width=40),
        num_layers=2,
        in_channels=3,
        out_channels=3,
        text_width=10,
        time_width=12,
    ),
    clip=ClipConfig(num_frames=4, height=4, width=6, stride=(1, 1, 1), text_tokens=3),
    layout=LayoutConfig(formulation="video", noisy_first_frame=False, pad_multiple=7),
    optimizer=OptimizerConfig(ema_decay=0.0),
    train=TrainConfig(global_batch_size=8),
)


def objective(config: RunConfig) -> VideoObjective:
    made = build_objective(config)
    assert isinstance(made, VideoObjective)
    return made


def test_held_frame_is_clean_and_all_tokens_see_each_other() -> None:
    layout = build_layout(HELD)
    assert layout.tokens_by_stream() == {"clean_video": 6, "noisy_video": 18, "padding": 4}
    mask = layout.dense_mask()
    assert mask[:24, :24].all()
    assert layout.full_pass().slot_runs() == ((0, 6), (1, 18), (0, 4))
    whole = build_layout(vary(HELD, layout={"noisy_first_frame": True})).full_pass()
    np.testing.assert_array_equal(layout.full_pass().positions()[:24], whole.positions()[:24])


@pytest.mark.slow
def test_loss_of_a_held_clip_reads_its_first_frame_clean_and_asks_for_the_others() -> None:
    made = objective(HELD)
    model = nnx.merge(abstract_model(made)[0], random_params(HELD))
    batch, noise = tiny_batch(HELD, 2), made.draw_noise(jax.random.key(0), 2)
    found = made.losses(model, batch, noise)["video"]
    np.testing.assert_array_equal(found.count, [18 * 12] * 2)
    assert made.counts(batch)["video"] == 2 * 18 * 12
    # Noise of the first frame is never seen, and what is asked of it is nothing.
    other = dataclasses.replace(noise, latents=noise.latents.at[:, 0].add(3.0))
    np.testing.assert_array_equal(made.losses(model, batch, other)["video"].total, found.total)
    # By hand: a clip of clean and noisy latents through the model itself, with timesteps of frames.
    times = noise.times[:, None, None, None, None]
    x0 = jnp.asarray(batch.latents, jnp.float32)
    noised = ((1 - times) * x0 + times * noise.latents).at[:, 0].set(x0[:, 0])
    ids = jnp.broadcast_to(1000.0 * noise.times[:, None], (2, 4)).at[:, 0].set(0.0)
    error = model(noised, ids, batch.text)[:, 1:] - (noise.latents - x0)[:, 1:]
    np.testing.assert_allclose(found.total, noise.weights * jnp.sum(error**2, (1, 2, 3, 4)), rtol=2e-4)
    # Shown another first frame, it is asked for the same.
    shown = dataclasses.replace(batch, latents=batch.latents.at[:, 0].add(1.0))
    assert (made.losses(model, batch, noise, shown)["video"].total != found.total).all()


def test_flops_of_a_held_clip_equal_the_jaxpr() -> None:
    program = build(HELD)
    count = closed_form(program)
    assert walk_step(program) == 8 * count.hardware_total
    assert walk_evaluation(program) == 8 * sum(count.hardware_forward.values())
    whole = closed_form(build(vary(HELD, layout={"noisy_first_frame": True})))
    assert count.forward["head"] * 4 == whole.forward["head"] * 3
    assert count.forward["time_embed"] == 2 * whole.forward["time_embed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": {"num_frames": 1}}, "this one has no other"),
        ({"backbone": {"patch": (2, 2, 2)}}, r"patch=\(2, 2, 2\) joins frames"),
    ],
)
def test_clips_without_a_frame_to_hold_are_refused(change: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_layout(vary(HELD, **change))
