"""The inverse-dynamics network against a loop over pixels, what it sees, and what its objective asks of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.flops.steps import build, closed_form, vary, walk_evaluation, walk_step
from tests.sampling.acting import random_params
from tests.tiny import tiny_batch
from wamjax.config.geometry import derive_geometry
from wamjax.config.inverse_dynamics import InverseDynamicsConfig
from wamjax.config.schema import (
    DataConfig,
    LayoutConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from wamjax.errors import ConfigError
from wamjax.flops.inverse_dynamics import count_positions, pooled_size
from wamjax.flops.parameters import list_parameters
from wamjax.layout import Role, build_layout
from wamjax.models.inverse_dynamics import InverseDynamicsModel
from wamjax.objectives.frame_pairs import FramePairsObjective
from wamjax.objectives.objective import abstract_model, build_objective
from wamjax.parallel.parameters import flatten_params
from wamjax.parallel.rule_tables import build_rules
from wamjax.planning.memory import batch_bytes
from wamjax.planning.placement import place_parameters

# Two blocks of two frames, three actions between two frames; no size is a multiple of the stride.
PAIRS = RunConfig(
    inverse_dynamics=InverseDynamicsConfig(width=7, num_layers=2, hidden_width=10, stride=2),
    layout=LayoutConfig(
        formulation="frame_pairs", num_blocks=2, frames_per_block=2, actions_per_block=6, states_per_block=0
    ),
    data=DataConfig(canvas=(9, 14), action_dim=5, frame_stride=3, video_statistics="none"),
    optimizer=OptimizerConfig(ema_decay=0.0),
    parallel=ParallelConfig(fsdp=-1),
    train=TrainConfig(global_batch_size=8),
)


def model_of(config: RunConfig) -> InverseDynamicsModel:
    graphdef, _ = abstract_model(build_objective(config))
    return nnx.merge(graphdef, random_params(config))


def objective() -> FramePairsObjective:
    made = build_objective(PAIRS)
    assert isinstance(made, FramePairsObjective)
    return made


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """A 3 x 3 convolution with a margin of zeros, pixel by pixel and tap by tap."""
    height, width, _ = x.shape
    rows, columns = range(0, height, stride), range(0, width, stride)
    out = np.zeros((len(rows), len(columns), kernel.shape[3])) + bias
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            for p in range(3):
                for q in range(3):
                    at = row + p - 1, column + q - 1
                    if 0 <= at[0] < height and 0 <= at[1] < width:
                        out[i, j] += x[at] @ kernel[p, q]
    return out


def test_network_equals_a_loop_over_pixels() -> None:
    params, video = flatten_params(random_params(PAIRS)), np.asarray(tiny_batch(PAIRS, 1).video)
    values = {name: np.asarray(value, np.float64) for name, value in params.items()}
    expected = []
    for before, after in zip(video[0, :-1] / 127.5 - 1, video[0, 1:] / 127.5 - 1, strict=True):
        x = np.concatenate([before, after], axis=-1)
        x = np.maximum(convolve(x, values["first.kernel"], values["first.bias"], 2), 0)
        for i in range(2):
            x = x + np.maximum(convolve(x, values[f"residual_{i}.kernel"], values[f"residual_{i}.bias"], 1), 0)
        x = np.maximum(x.mean((0, 1)) @ values["hidden.kernel"] + values["hidden.bias"], 0)
        expected.append(x @ values["out.kernel"] + values["out.bias"])
    found = model_of(PAIRS)(jnp.asarray(video))
    assert found.shape == (1, 4, 15)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    assert pooled_size((9, 14), 2) == (5, 7)
    assert count_positions(PAIRS, PAIRS.inverse_dynamics or InverseDynamicsConfig()) == 4 * 35


def test_actions_depend_on_the_frames_that_the_layout_shows_them() -> None:
    layout, made, model = build_layout(PAIRS), objective(), model_of(PAIRS)
    video = np.asarray(tiny_batch(PAIRS, 1).video)
    found = made.actions(model, jnp.asarray(video))
    seen = layout.dense_mask()
    frames, actions = (layout.tokens_by_stream()[role] for role in (Role.OBSERVATION, Role.ACTION))
    assert (frames, actions) == (5, 12)
    for frame in range(frames):
        other = video.copy()
        other[:, frame] = 255 - other[:, frame]
        moved = np.abs(np.asarray(made.actions(model, jnp.asarray(other)) - found)).max((0, 2)) > 0
        np.testing.assert_array_equal(moved, seen[frames:, frame])


class Oracle(InverseDynamicsModel):
    """Answers with a given array."""

    def __init__(self, answers: jax.Array) -> None:
        self.answers = nnx.data(answers)

    def __call__(self, video: jax.Array) -> jax.Array:
        del video
        return self.answers


def test_loss_is_of_actions_that_are_there_between_real_frames() -> None:
    made, batch = objective(), tiny_batch(PAIRS, 3)
    whole = {"action_mask": jnp.ones((3, 12), bool), "action_dim_mask": jnp.ones((3, 5), bool)}
    batch = dataclasses.replace(
        batch,
        **whole,
        has_action=jnp.array([True, False, True]),
        frame_mask=jnp.ones((3, 5), bool).at[2, 3].set(False),
    )
    answers = jnp.reshape(batch.actions + 2.0, (3, 4, 15))
    losses = made.losses(Oracle(answers), batch, made.draw_noise(jax.random.key(0), 3))
    np.testing.assert_array_equal(losses["action"].count, [60, 0, 30])  # without the pairs on both sides of frame 3
    np.testing.assert_allclose(losses["action"].total, [240, 0, 120], rtol=1e-5)
    assert made.counts(batch)["action"] == 90
    np.testing.assert_allclose(made.total(losses), 4.0, rtol=1e-5)


@pytest.mark.parametrize("finetuned", [{}, {"frozen": ("first",)}, {"frozen": ("*",), "trained": ("hidden.bias",)}])
def test_flops_equal_the_jaxpr(finetuned: dict[str, Any]) -> None:
    program = build(vary(PAIRS, finetune=finetuned))
    count = closed_form(program)
    assert walk_step(program) == 8 * count.hardware_total
    assert walk_evaluation(program) == 8 * count.forward_total
    if not finetuned:
        assert count.model_total == 3 * count.forward_total
        assert (count.num_pairs, count.num_dense_pairs) == (0, 0)


def test_parameters_and_their_places_are_those_of_the_model() -> None:
    program = build(PAIRS)
    shapes = {name: leaf.shape for name, leaf in flatten_params(program.abstract_params).items()}
    assert {name: parameter.shape for name, parameter in list_parameters(PAIRS).items()} == shapes
    placed = place_parameters(PAIRS, dict(program.mesh.shape), build_rules(PAIRS.parallel).parameters)
    assert {p.path: p.local for p in placed} == {name: int(np.prod(shape)) for name, shape in shapes.items()}
    batch = tiny_batch(PAIRS, 8)
    assert batch_bytes(PAIRS, 8) == sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


def test_any_canvas_is_read() -> None:
    assert derive_geometry(vary(PAIRS, data={"canvas": (7, 11)})).num_frames == 5  # no multiple of config.model.patch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": {"formulation": "joint"}}, "needs formulation=frame_pairs"),
        ({"layout": {"states_per_block": 1}}, "states_per_block=1; config.inverse_dynamics"),
        ({"layout": {"frames_per_block": 4, "actions_per_block": 6}}, "does not divide over the block's"),
        ({"layout": {"actions_per_block": 4}}, "does not divide the 6 dataset steps"),
        ({"data": {"video_statistics": "training_mean"}}, "video_statistics=training_mean"),
        ({"parallel": {"tensor": 2}}, "tensor=2 would split"),
        ({"inverse_dynamics": None}, "formulation=frame_pairs needs config.inverse_dynamics"),
    ],
)
def test_settings_that_make_no_inverse_dynamics_model_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(vary(PAIRS, **change))
    with pytest.raises(ConfigError, match=r"config\.inverse_dynamics\.stride=0; expected 1 or more"):
        InverseDynamicsConfig(stride=0)
