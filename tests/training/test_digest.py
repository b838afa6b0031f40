"""Digests: the same on every mesh, different after any change of a bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wamjax.training.digest import describe_array, digest_arrays, path_name

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "bool", "int8", "uint32", "float8_e4m3fn")


def _mesh(rows: int, columns: int) -> Mesh:
    devices = np.asarray(jax.devices()[: rows * columns]).reshape(rows, columns)
    return Mesh(devices, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def _bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits as ``dtype`` (NaN and infinity among the floats)."""
    kind = jnp.dtype(dtype)
    if dtype == "bool":
        return np.random.default_rng(seed).random(shape) < 0.5
    raw = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * kind.itemsize), dtype=np.uint8)
    return raw.view(kind)


def _reference(array: np.ndarray) -> str:
    """The digest written once more with 64-bit NumPy integers and no sharding."""

    def mix(words: np.ndarray, s1: int, f1: int, s2: int, f2: int, s3: int) -> np.ndarray:
        words = ((words ^ (words >> s1)) * f1) % 2**32
        words = ((words ^ (words >> s2)) * f2) % 2**32
        return words ^ (words >> s3)

    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    words = np.ascontiguousarray(array).reshape(-1).view(unsigned).astype(np.uint64)
    index = np.arange(words.size, dtype=np.uint64)
    position = mix((index + 0x9E3779B9) % 2**32, 16, 0x85EBCA6B, 13, 0xC2B2AE35, 16)
    high = mix(words ^ position, 16, 0x85EBCA6B, 13, 0xC2B2AE35, 16).sum() % 2**32
    low = mix((words + position * 0x9E3779B9) % 2**32, 16, 0x7FEB352D, 15, 0x846CA68B, 16).sum() % 2**32
    return f"{describe_array(array)}:{int(high):08x}{int(low):08x}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_digest_of_any_dtype_matches_a_plain_computation(dtype: str) -> None:
    array = _bits(dtype, (6, 40))
    assert digest_arrays({"a": jnp.asarray(array)})["a"] == _reference(array)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec("tensor", "fsdp")])
@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (2, 4)])
def test_digest_on_any_mesh_is_the_same(shape: tuple[int, int], spec: PartitionSpec) -> None:
    array = _bits("float32", (16, 8))
    placed = jax.device_put(array, NamedSharding(_mesh(*shape), spec))
    assert digest_arrays([placed]) == digest_arrays([array])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_digest_after_any_single_bit_flip_differs(dtype: str) -> None:
    array = _bits(dtype, (3, 5))
    digests = {digest_arrays([array])["0"]}
    for bit in range(array.nbytes * 8):
        flipped = bytearray(array.tobytes())
        flipped[bit // 8] ^= 1 << (bit % 8)
        digests.add(digest_arrays([np.frombuffer(bytes(flipped), array.dtype).reshape(array.shape)])["0"])
    assert len(digests) == array.nbytes * 8 + 1


def test_digest_of_swapped_elements_differs() -> None:
    array = np.arange(64, dtype=np.float32)
    swapped = array.copy()
    swapped[[3, 60]] = swapped[[60, 3]]
    assert digest_arrays([array]) != digest_arrays([swapped])


def test_digest_tells_zero_from_minus_zero_and_shapes_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    texts = [digest_arrays([value])["0"] for value in (zeros, -zeros, zeros.reshape(3, 2), zeros.astype(np.int32))]
    assert len(set(texts)) == 4


def test_digest_of_scalars_and_empty_arrays_is_defined() -> None:
    digests = digest_arrays({"step": jnp.int32(7), "none": jnp.zeros((0, 3))})
    assert digests["step"].startswith("int32[]:")
    assert digests["none"] == "float32[0,3]:0000000000000000"
    assert digest_arrays({}) == {}


def test_path_name_is_dotted() -> None:
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({"a": ({"b": 1},), "c": 2})]
    assert paths == ["a.0.b", "c"]
