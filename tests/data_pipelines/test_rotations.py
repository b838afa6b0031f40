import numpy as np
import pytest

from data_pipelines.embodiments.rotation_forms import ROTATION_DIMS, RotationForm
from data_pipelines.rotations import format_rotations, parse_rotations

FORMS: tuple[RotationForm, ...] = tuple(ROTATION_DIMS)


def turn(axis: int, angle: float) -> np.ndarray:
    """The matrix of a turn about a coordinate axis, written out."""
    c, s = np.cos(angle), np.sin(angle)
    one, two = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[one, one] = matrix[two, two] = c
    matrix[one, two], matrix[two, one] = -s, s
    return matrix


ANGLES = (0.3, -0.7, 1.9)
# About fixed axes x, then y, then z: the last turn stands on the left.
MATRIX = turn(2, ANGLES[2]) @ turn(1, ANGLES[1]) @ turn(0, ANGLES[0])
HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("form", "values", "matrix"),
    [
        ("euler_xyz", ANGLES, MATRIX),
        ("rotation_6d", [*MATRIX[:, 0], *MATRIX[:, 1]], MATRIX),
        ("axis_angle", [0, 0, np.pi / 2], turn(2, np.pi / 2)),
        ("quaternion", [0, HALF, 0, HALF], turn(1, np.pi / 2)),
    ],
)
def test_form_means_the_matrix_it_says(form: RotationForm, values: list[float], matrix: np.ndarray) -> None:
    rotations = parse_rotations(np.array([values]), form)
    np.testing.assert_allclose(rotations.as_matrix()[0], matrix, atol=1e-12)
    np.testing.assert_allclose(format_rotations(rotations, form)[0], values, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_going_through_another_form_and_back_is_exact(form: RotationForm, other: RotationForm) -> None:
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(4, 25, 4))
    values = format_rotations(parse_rotations(quaternions, "quaternion"), form).reshape(4, 25, -1)
    through = format_rotations(parse_rotations(values, form), other)
    back = format_rotations(parse_rotations(through, other), form).reshape(values.shape)
    np.testing.assert_allclose(back, values, atol=1e-9)


def test_predicted_columns_that_are_not_orthonormal_are_made_so() -> None:
    matrix = parse_rotations(np.array([[0, 2.0, 0, 1.0, 5.0, 0]]), "rotation_6d").as_matrix()[0]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix[:, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("form", "values"), [("quaternion", [0.0] * 4), ("rotation_6d", [1.0, 0, 0, 2.0, 0, 0]), ("rotation_6d", [0.0] * 6)]
)
def test_what_is_no_orientation_is_refused(form: RotationForm, values: list[float]) -> None:
    with pytest.raises(ValueError, match="zero"):
        parse_rotations(np.array([values]), form)
