"""DreamZero's training pass and its checkpoints against a second implementation of them."""

import importlib.util
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from launch import cli
from tests.weights.golden_folder import GOLDEN, build, check_golden, nest, read_golden, to_ours
from wamjax.errors import DataError
from wamjax.weights.kinds.dreamzero import KIND

FOLDER = GOLDEN / "dreamzero"


def test_dreamzero_equals_the_second_implementation_forward_and_gradients():
    check_golden(KIND, read_golden(FOLDER))


def test_weights_verify_reads_a_dreamzero_folder(tmp_path, capsys):
    """Its outputs alone: gradients are the test above."""
    for name in ("config.json", "model.safetensors", "inputs.npz"):
        shutil.copy(FOLDER / name, tmp_path)
    recorded = np.load(FOLDER / "outputs.npz")
    np.savez(tmp_path / "outputs.npz", **{name: recorded[name] for name in ("video_noise_pred", "action_noise_pred")})
    assert cli.main(["weights", "verify", str(tmp_path), "--kind=dreamzero"]) == 0
    assert "action_noise_pred" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "index", "message"),
    [
        ("clean_x", None, "no 'clean_x'"),
        ("action", np.s_[:, :5], "each with the same number of actions"),
        ("state", np.s_[:, :1], "1 states for 2 blocks; expected 1 for each"),
        ("x", np.s_[:, :, :4], "latents|frames"),
        ("context", None, "no 'context'"),
    ],
)
def test_dreamzero_inputs_that_do_not_fit_are_refused_in_one_line(name, index, message):
    golden = read_golden(FOLDER)
    config = KIND.parse_config(golden.config)
    params = nest(to_ours(KIND, config, "original", golden.tensors))
    inputs = {key: jnp.asarray(array) for key, array in golden.inputs.items() if key != "target"}
    array = inputs.pop(name)
    if index is not None:
        inputs[name] = array[index]
        if name == "x":
            inputs |= {key: inputs[key][index] for key in ("clean_x", "y")}
    with pytest.raises(DataError, match=message) as error:
        KIND.outputs(build(KIND, config, params), inputs)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the parity extra (torch)")
@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (1, {"num_frame_per_block": 2, "num_action_per_block": 4, "num_layers": 3}),
        (2, {"dim": 36, "num_heads": 3, "added_kv_proj_dim": 36, "num_state_per_block": 2, "num_action_per_block": 2}),
    ],
)
def test_dreamzero_other_sizes_equal_the_second_implementation(tmp_path, seed, changes):
    from tests.golden import make_dreamzero

    make_dreamzero.write(tmp_path, {**make_dreamzero.CONFIG, **changes}, seed)
    print(check_golden(KIND, read_golden(tmp_path), atol=5e-5))
