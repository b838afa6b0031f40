"""Loading shard by shard: on the host and through a device, whole tensors and slices, equal to the rule itself."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wamjax.config.schema import ParallelConfig
from wamjax.parallel.mesh import build_mesh
from wamjax.weights import load
from wamjax.weights.rules import TensorRule
from wamjax.weights.tensors import TensorFolder
from wamjax.weights.transposition import copy_transposed
from wamjax.weights.write import write_tensors

LAYERS = 3
# Parameter -> rule, shape of one tensor, how the parameter is split over the mesh of 4 x 2.
PARAMETERS = {
    "embedding": (TensorRule(path="embedding", name="embedding"), (8, 6), PartitionSpec("fsdp")),
    "head": (TensorRule(path="head", name="head", pattern="o i -> i o"), (40, 72), PartitionSpec("fsdp", "tensor")),
    "heads": (
        TensorRule(path="heads", name="b.{layer}.q", pattern="(k e two) d -> d k two e", sizes={"k": 2, "two": 2}),
        (2 * 2 * 20, 80),
        PartitionSpec(None, "fsdp", "tensor"),
    ),
    "bias": (TensorRule(path="bias", name="b.{layer}.bias"), (12,), PartitionSpec(None, "tensor")),
    "gate": (TensorRule(path="gate", name="b.{layer}.gate"), (), PartitionSpec()),
    "patch": (
        TensorRule(path="patch", name="patch", pattern="d c p -> (p c) d"),
        (64, 4, 6),
        PartitionSpec(None, "fsdp"),
    ),
    # One tensor each for two parameters.
    "first": (
        TensorRule(path="first", name="b.{layer}.fused", pattern="(k e) d -> d k e", sizes={"k": 2}, part=(0, 2)),
        (2 * 2 * 20, 80),
        PartitionSpec(None, "fsdp", "tensor"),
    ),
    "second": (
        TensorRule(path="second", name="b.{layer}.fused", pattern="(k e) d -> d k e", sizes={"k": 2}, part=(1, 2)),
        (2 * 2 * 20, 80),
        PartitionSpec(None, "fsdp", "tensor"),
    ),
    "first_bias": (TensorRule(path="first_bias", name="biases", part=(0, 2)), (16,), PartitionSpec("fsdp")),
    "second_bias": (TensorRule(path="second_bias", name="biases", part=(1, 2)), (16,), PartitionSpec("fsdp")),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("checkpoint")
    tensors = {
        rule.name_of(layer): rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        for rule, shape, _ in PARAMETERS.values()
        for layer in range(LAYERS if rule.is_stacked else 1)
    }
    planned = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    write_tensors(folder, "model", planned, tensors.__getitem__, max_file_bytes=10_000)
    return folder, tensors


@pytest.mark.parametrize("dtype", ["preserve", "float32"])
@pytest.mark.parametrize("is_sharded", [False, True], ids=["one device", "eight devices"])
@pytest.mark.parametrize("way", ["host", "device"])
def test_load_params_equals_the_rules_applied_to_whole_tensors(checkpoint, way, is_sharded, dtype, monkeypatch):
    if way == "device":  # what a GPU or TPU does, on a CPU
        monkeypatch.setattr(load, "_start_on_host", load._load_on_device)
    monkeypatch.setattr(load, "_RELEASE_BYTES", 1000)
    folder, tensors = checkpoint
    expected = {}
    for path, (rule, _, _) in PARAMETERS.items():
        layers = [rule.to_ours(tensors[rule.name_of(layer)]) for layer in range(LAYERS if rule.is_stacked else 1)]
        expected[path] = np.stack(layers) if rule.is_stacked else layers[0]
    mesh = build_mesh(ParallelConfig(data=1, fsdp=4, context=1, tensor=2))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = load.load_params(
        TensorFolder(folder),
        [rule for rule, _, _ in PARAMETERS.values()],
        {path: NamedSharding(mesh, spec) if is_sharded else one for path, (_, _, spec) in PARAMETERS.items()},
        {path: array.shape for path, array in expected.items()},
        {name: name for name in tensors},
        dtype,
    )
    for path, array in expected.items():
        assert loaded[path].dtype == (array.dtype if dtype == "preserve" else np.float32), path
        np.testing.assert_array_equal(np.asarray(loaded[path]), array.astype(loaded[path].dtype), err_msg=path)


def test_part_of_a_tensor_is_read_alone(checkpoint):
    folder, tensors = checkpoint
    tensor = tensors["b.1.fused"]
    memory = np.full(tensor.nbytes // 2, 7, np.uint8)
    part = TensorFolder(folder).read("b.1.fused", memory, (1, 2))
    assert np.shares_memory(part, memory)
    np.testing.assert_array_equal(part, tensor[len(tensor) // 2 :])


def test_loaded_parameter_may_be_donated_and_is_its_own_memory(checkpoint):
    folder, tensors = checkpoint
    rule = PARAMETERS["head"][0]
    place = {"head": jax.sharding.SingleDeviceSharding(jax.devices()[0])}
    first, second = (
        load.load_params(TensorFolder(folder), [rule], place, {"head": (72, 40)}, {"head": "head"})["head"]
        for _ in range(2)
    )
    jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(first))
    np.testing.assert_array_equal(np.asarray(second), tensors["head"].T)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_copy_transposed_equals_numpy_in_every_order(order, dtype):
    source = np.random.default_rng(0).standard_normal((70, 3, 90)).astype(ml_dtypes.bfloat16).transpose(order)
    out = np.empty(source.shape, dtype)
    copy_transposed(out, source)
    np.testing.assert_array_equal(out, source.astype(dtype))


@pytest.mark.parametrize("shape", [(), (0, 4), (1, 1), (5,)])
def test_copy_transposed_small_array_is_copied(shape):
    source = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape).T
    out = np.full(source.shape, -1.0, np.float32)
    copy_transposed(out, source)
    np.testing.assert_array_equal(out, source)
