"""States and actions of a dataset as a model sees them, and back."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipelines.embodiments.rotation_forms import ROTATION_DIMS, RotationForm
from data_pipelines.embodiments.spec import UnusedDims, VectorField
from data_pipelines.normalisation import Normalisation, Scale
from data_pipelines.vectors import VectorCodec, VectorLayout, build_layout, vector_keys
from wamjax.config.schema import DataConfig

HAND = VectorField(name="hand", key="pose", first=0, slots=(2, 1, 0), unit="m")
TURN = VectorField(name="turn", key="pose", first=3, slots=(3, 4, 5), unit="rad", rotation="axis_angle")
GRIP = VectorField(name="grip", key="grip", first=1, slots=(8,), unit="1", gripper="open_is_high")
GOAL = dataclasses.replace(HAND, key="goal", reference="chunk_start")
GOAL_TURN = VectorField(
    name="turn",
    key="goal",
    first=3,
    slots=(3, 4, 5, 9, 10, 11),
    unit="rad",
    rotation="quaternion",
    shown_as="rotation_6d",
    reference="chunk_start",
)
GOAL_GRIP = VectorField(name="grip", key="order", first=0, slots=(8,), unit="1", gripper="closed_is_high")
LAYOUT = VectorLayout(
    states=(HAND, TURN, GRIP),
    actions=(GOAL, GOAL_TURN, GOAL_GRIP),
    unused=(UnusedDims(key="grip", first=0, count=1), UnusedDims(key="order", first=1, count=2)),
)


def make_values(lead: tuple[int, ...], seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random states and actions as a dataset has them."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(lead))
    turns = [Rotation.from_quat(rng.normal(size=(count, 4))) for _ in range(2)]
    where = [rng.normal(size=(count, 3)) for _ in range(2)]
    state = {
        "pose": np.concatenate([where[0], turns[0].as_rotvec()], axis=1),
        "grip": rng.normal(size=(count, 2)),
    }
    action = {
        "goal": np.concatenate([where[1], turns[1].as_quat(canonical=True)], axis=1),
        "order": np.concatenate([rng.normal(size=(count, 1)), np.zeros((count, 2))], axis=1),
    }
    shaped = [{k: v.reshape(*lead, -1).astype(np.float32) for k, v in d.items()} for d in (state, action)]
    return shaped[0], shaped[1]


def test_vectors_equal_a_loop_over_samples() -> None:
    state, action = make_values((20,))
    seen, wanted = LAYOUT.gather_state(state), LAYOUT.gather_actions(action, state)
    assert (seen.shape, wanted.shape) == ((20, 9), (20, 12))
    for row in range(20):
        pose, goal = state["pose"][row].astype(float), action["goal"][row].astype(float)
        expected = np.zeros(9)
        expected[[2, 1, 0]] = pose[:3]
        expected[3:6] = pose[3:]
        expected[8] = state["grip"][row, 1]
        np.testing.assert_allclose(seen[row], expected, rtol=1e-6)

        now, then = Rotation.from_rotvec(pose[3:]).as_matrix(), Rotation.from_quat(goal[3:]).as_matrix()
        turn = then @ now.T  # turned by this about fixed axes, `now` becomes `then`
        expected = np.zeros(12)
        expected[[2, 1, 0]] = goal[:3] - pose[:3]
        expected[[3, 4, 5]], expected[[9, 10, 11]] = turn[:, 0], turn[:, 1]
        expected[8] = -action["order"][row, 0]  # all grippers are open at the high end
        np.testing.assert_allclose(wanted[row], expected, atol=1e-6)


def test_masks_name_the_dims_there_are() -> None:
    assert np.flatnonzero(LAYOUT.state_mask(10)).tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert np.flatnonzero(LAYOUT.action_mask(13)).tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]


def test_robot_gets_back_the_actions_it_executed() -> None:
    state, action = make_values((3, 7))
    back = LAYOUT.scatter_actions(LAYOUT.gather_actions(action, state), state)
    assert set(back) == {"goal", "order"}
    for key, values in action.items():
        np.testing.assert_allclose(back[key], values, atol=2e-6)


@pytest.mark.parametrize("stored", tuple(ROTATION_DIMS))
@pytest.mark.parametrize("shown", tuple(ROTATION_DIMS))
@pytest.mark.parametrize("reference", ["absolute", "chunk_start"])
def test_every_pair_of_forms_is_inverted(stored: RotationForm, shown: RotationForm, reference) -> None:
    turn = VectorField(
        name="turn",
        key="turn",
        first=0,
        slots=tuple(range(ROTATION_DIMS[shown])),
        unit="rad",
        rotation=stored,
        shown_as=shown,
    )
    layout = VectorLayout(states=(turn,), actions=(dataclasses.replace(turn, reference=reference),))
    rng = np.random.default_rng(1)
    now, then = (Rotation.from_quat(rng.normal(size=(30, 4))) for _ in range(2))
    forms = {
        "euler_xyz": lambda r: r.as_euler("xyz"),
        "axis_angle": lambda r: r.as_rotvec(),
        "quaternion": lambda r: r.as_quat(canonical=True),
        "rotation_6d": lambda r: r.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6),
    }
    state, action = ({"turn": forms[stored](r)} for r in (now, then))
    back = layout.scatter_actions(layout.gather_actions(action, state), state)
    np.testing.assert_allclose(back["turn"], action["turn"], atol=3e-6)


def test_codec_decodes_a_chunk_to_what_the_robot_executed() -> None:
    state, action = make_values((4, 6))
    start = {key: value[:, 0] for key, value in state.items()}
    at_start = {key: np.repeat(value[:, None], 6, axis=1) for key, value in start.items()}
    actions, states = (  # scales wide enough that nothing is clamped
        Scale(low=(-20.0,) * n, high=(30.0,) * n, mean=(0.0,) * n, clamped=(0.0,) * n, outliers=(0,) * n)
        for n in (12, 9)
    )
    normalisation = Normalisation(
        actions=actions, state=states, fingerprint="", vectors=LAYOUT.fingerprint, episodes=1, steps=1
    )
    codec = VectorCodec(layout=LAYOUT, normalisation=normalisation, state_dim=16, action_dim=14)
    chunk = codec.encode_actions(action, at_start)
    assert chunk.shape == (4, 6, 14)
    assert np.abs(chunk).max() <= 1
    assert (chunk[..., ~LAYOUT.action_mask(14)] == 0).all()
    for key, values in codec.decode_actions(chunk, start).items():
        np.testing.assert_allclose(values, action[key], atol=1e-5)
    encoded = codec.encode_state(start)
    assert encoded.shape == (4, 16)
    assert (encoded[:, ~LAYOUT.state_mask(16)] == 0).all()


def test_without_an_embodiment_vectors_are_the_features_as_they_are() -> None:
    layout = build_layout(DataConfig(), {"observation.state": 3, "action": 2}.__getitem__)
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(layout.gather_state({"observation.state": state}), state)
    np.testing.assert_array_equal(layout.gather_actions({"action": action[:, :2]}, {}), action[:, :2])
    assert vector_keys(DataConfig()) == ("observation.state", "action")
    assert vector_keys(DataConfig(state_key="", action_key="")) == ()
