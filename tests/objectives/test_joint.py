"""The loss of a backbone with action modules: against the released model's own pass, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import QUICK_COMPILE
from wamjax.batch import WamBatch, batch_spec, fake_batch
from wamjax.config.backbone import ActionsConfig, BlockConfig, ClipConfig, VideoTransformerConfig
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.errors import ConfigError
from wamjax.flops.jaxpr import trace_flops
from wamjax.flops.model import count_flops
from wamjax.layout import build_layout, executed_pairs
from wamjax.models.action_transformers import CategoryActionTransformer, TeacherForced
from wamjax.objectives.joint import JointObjective
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.objectives.stream_loss import StreamLoss
from wamjax.parallel.mesh import build_mesh, make_global_batch
from wamjax.training.program import build_program
from wamjax.types import PureDict

# Two blocks of one frame after the first; 2 x 3 tokens in a frame.
BACKBONE = VideoTransformerConfig(
    block=BlockConfig(width=24, num_heads=2, ffn_width=40, image_branch=True),
    num_layers=2,
    in_channels=7,
    out_channels=4,
    time_width=10,
    text_width=6,
    image_width=16,
)
CONFIG = RunConfig(
    backbone=BACKBONE,
    clip=ClipConfig(num_frames=9, height=32, width=48, text_tokens=3, image_tokens=5),
    actions=ActionsConfig(modules="category", hidden_width=8, num_categories=2),
    layout=LayoutConfig(num_blocks=2, frames_per_block=1, actions_per_block=4, order="grouped", pad_unit=8),
    objective=ObjectiveConfig(),
    data=DataConfig(action_dim=3, state_dim=5),
    optimizer=OptimizerConfig(warmup_steps=1, ema_decay=0.0),
    train=TrainConfig(num_steps=4, global_batch_size=4),
)
BLOCK_OF_FRAME = np.array([1, 2, 3])  # slots: 0 is clean, 1 the first frame's, then one per block


def randomised(objective: JointObjective) -> CategoryActionTransformer:
    """Returns a model whose every parameter is noise: heads begin at zero."""
    rng = np.random.default_rng(0)
    graphdef, variables = abstract_model(objective)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), variables)
    return nnx.merge(graphdef, params)


@pytest.mark.parametrize("order", [pytest.param("natural", marks=pytest.mark.slow), "grouped"])
def test_losses_equal_those_of_the_pass_that_the_released_weights_are_tested_with(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = dataclasses.replace(CONFIG.layout, order=order)
    objective = JointObjective(dataclasses.replace(CONFIG, layout=layout))
    model = randomised(objective)
    batch = jax.tree.map(jnp.asarray, fake_batch(CONFIG, 2, seed=3))
    noise = objective.draw_noise(jax.random.key(1), 2)
    losses = jax.jit(objective.losses, compiler_options=QUICK_COMPILE)(model, batch, noise)

    latents = np.asarray(batch.latents, np.float32)
    sample = model.video.unpatch(noise.video.reshape(2, -1, 16), (3, 2, 3))
    times, weights = np.asarray(noise.times), np.asarray(noise.weights)
    t = times[:, BLOCK_OF_FRAME][:, :, None, None, None]
    condition = np.asarray(batch.condition, np.float32)
    slots = np.repeat([2, 3], 4)
    action_times = times[:, slots][..., None]
    noised = (1 - action_times) * batch.actions + action_times * noise.actions
    inputs = TeacherForced(
        clean=jnp.concatenate([latents, condition], axis=-1),
        noisy=jnp.concatenate([(1 - t) * latents + t * sample, condition], axis=-1),
        clean_ids=jnp.zeros((2, 3)),
        noisy_ids=1000 * noise.times[:, BLOCK_OF_FRAME],
        actions=noised,
        action_ids=1000 * noise.times[:, slots],
        states=batch.state * batch.state_mask,
        category=batch.embodiment_id,
    )
    # With blocks of one frame the released kernel differs within a frame alone; it is switched off here.
    monkeypatch.setattr(type(model), "_layout", lambda *_: build_layout(natural_without_padding()))
    video, actions = jax.jit(model.__call__, compiler_options=QUICK_COMPILE)(
        inputs, batch.text.astype(jnp.float32), image=batch.image.astype(jnp.float32)
    )
    error = np.square(video - (sample - latents)) * weights[:, BLOCK_OF_FRAME][:, :, None, None, None]
    mask = np.broadcast_to(np.asarray(batch.frame_mask)[:, :, None, None, None], error.shape)
    np.testing.assert_allclose(losses["video"].mean(), (error * mask).sum() / mask.sum(), rtol=1e-4)
    mask = np.asarray(batch.action_mask & batch.has_action[:, None])[..., None]
    mask = mask & np.asarray(batch.action_dim_mask)[:, None]
    error = np.square(actions - (noise.actions - batch.actions)) * weights[:, slots][..., None] * mask
    np.testing.assert_allclose(losses["action"].mean(), error.sum() / mask.sum(), rtol=1e-4)
    counts = objective.counts(batch)
    for name, loss in losses.items():
        np.testing.assert_allclose(counts[name], loss.count.sum())


def natural_without_padding() -> RunConfig:
    return dataclasses.replace(CONFIG, layout=dataclasses.replace(CONFIG.layout, order="natural", pad_unit=1))


def test_forward_flops_equal_the_jaxpr_of_the_loss() -> None:
    # One category: with more, products are of one sample's own kernel, at the same cost.
    config = dataclasses.replace(CONFIG, actions=dataclasses.replace(CONFIG.actions, num_categories=1))
    objective = JointObjective(config)
    graphdef, variables = abstract_model(objective)

    b = 2

    def forward(params: PureDict, batch: WamBatch) -> dict[str, StreamLoss]:
        return objective.losses(nnx.merge(graphdef, params), batch, objective.draw_noise(jax.random.key(0), b))

    traced = trace_flops(forward, nnx.to_pure_dict(variables), batch_spec(config, b)).total
    count = count_flops(config, objective.layout)
    assert traced == b * sum(count.hardware_forward.values())
    assert count.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))


def losses_of_two_steps(parallel: ParallelConfig, num_devices: int) -> list[list[float]]:
    config = dataclasses.replace(CONFIG, parallel=parallel)
    mesh = build_mesh(parallel, jax.devices()[:num_devices])
    program = build_program(config, mesh)
    state, batch = program.init(), make_global_batch(fake_batch(config, 4), mesh)
    found = []
    for _ in range(2):
        state, metrics = program.step(state, batch)
        found.append([float(metrics[name]) for name in ("loss/video", "loss/action", "optimizer/grad_norm")])
    return found


@pytest.mark.slow
def test_explicit_blocks_train_as_one_device_does() -> None:
    explicit = ParallelConfig(fsdp=4, context=2, rules="fsdp_context", blocks="explicit")
    np.testing.assert_allclose(
        losses_of_two_steps(explicit, 8), losses_of_two_steps(ParallelConfig(fsdp=1), 1), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"actions": ActionsConfig()}, r"config\.actions\.modules=none.*config\.layout\.formulation=video"),
        ({"clip": ClipConfig(num_frames=13, height=32, width=48)}, r"num_frames=13 is 4 latent frames.* are 3"),
        ({"objective": ObjectiveConfig(action_prediction="x0")}, r"config\.objective\.action_prediction=x0"),
        (
            {"backbone": dataclasses.replace(BACKBONE, patch=(3, 2, 2))},
            r"config\.backbone\.patch=\(3, 2, 2\)|latent frames",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_one_line(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        build_objective(dataclasses.replace(CONFIG, **change))
    assert "\n" not in str(error.value)


def test_dreamzero_on_droid_executes_hardly_more_pairs_than_it_needs() -> None:
    from experiments.systems import dreamzero_14b_droid
    from wamjax.config import bridge

    config = bridge.from_config_dict(dreamzero_14b_droid.get_config())
    layout = build_layout(config)
    schedule = layout.full_pass().schedule
    assert schedule.num_pairs == 76_576_484
    assert executed_pairs(schedule, 896) <= 1.05 * schedule.num_pairs
    count = count_flops(config, layout)
    # The hand count of the released code embeds a time per token; one per slot is all that is needed.
    per_token = 2 * (256 * 5120 + 5120**2 + 6 * 5120**2)
    assert count.forward_total == 463_073_641_365_504 - (15_940 - layout.num_slots) * per_token
