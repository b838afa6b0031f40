"""Checkpoints: what goes in comes out on any mesh, and what was damaged on disk is never taken for good."""

import gc
import logging
import resource
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wamjax.errors import ConfigError
from wamjax.training.checkpoint import CheckpointStore, find_damage
from wamjax.training.checkpoint_files import MANIFEST
from wamjax.training.checkpoint_record import CheckpointError, CheckpointRecord
from wamjax.training.digest import digest_arrays

LEDGER = {"samples": 10**20 + 1, "model_flops": {"ffn": 3**60}, "wall": {"seconds": 0.1}}


def _mesh(size: int) -> Mesh:
    return Mesh(np.asarray(jax.devices()[:size]), ("fsdp",), axis_types=(AxisType.Auto,))


def _state(seed: int = 0, size: int = 4) -> Any:
    """A state with everything real ones have: sharded and replicated arrays, optax's nested tuples, bf16, a scalar."""
    rng = np.random.default_rng(seed)
    params = {"blocks": {"kernel": rng.normal(size=(8, 6)).astype(np.float32)}, "scale": np.ones(3, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1.0, 10)))
    state = {"params": params, "ema": {}, "opt": optimizer.init(params), "step": np.int32(seed)}
    mesh = _mesh(size)

    def place(leaf: Any) -> jax.Array:
        spec = PartitionSpec("fsdp") if np.ndim(leaf) == 2 else PartitionSpec()
        return jax.device_put(jnp.asarray(leaf), NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def _abstract(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def _save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, _state(step), position=step * 4, ledger=LEDGER, config_hash="abc")
    store.wait()


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=3)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_restore_on_another_mesh_gives_the_same_bits_and_record(store: CheckpointStore, size: int) -> None:
    _save(store, 10)
    wanted = _abstract(_state(size=size))
    restored = store.restore(10, wanted)
    assert jax.tree.structure(restored.state) == jax.tree.structure(wanted)
    assert digest_arrays(restored.state) == digest_arrays(_state(10))
    assert [leaf.sharding for leaf in jax.tree.leaves(restored.state)] == [
        leaf.sharding for leaf in jax.tree.leaves(wanted)
    ]
    assert (restored.record.step, restored.record.position) == (10, 40)
    assert restored.record.ledger == LEDGER  # integers beyond 2^64 stay exact


def test_save_lets_the_caller_donate_the_state(store: CheckpointStore) -> None:
    state = _state(5)
    expected = digest_arrays(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    store.save(5, state, position=0, ledger={}, config_hash="")
    for _ in range(3):
        state = overwrite(state)
    store.wait()
    restored = store.restore(5, _abstract(_state()))
    assert digest_arrays(restored.state) == expected


def test_old_checkpoints_go_only_when_a_newer_one_is_complete(store: CheckpointStore) -> None:
    _save(store, 1, 2, 3)
    store.save(4, _state(4), position=16, ledger={}, config_hash="")
    assert store.steps[:3] == [1, 2, 3]  # 4 may or may not be complete yet; nothing is deleted before
    store.wait()
    assert store.steps == [2, 3, 4]


def test_restore_latest_without_any_checkpoint_returns_none(store: CheckpointStore) -> None:
    assert store.restore_latest(_abstract(_state())) is None


def _files(store: CheckpointStore, step: int) -> list[Path]:
    return sorted(path for path in store.path(step).rglob("*") if path.is_file() and path.stat().st_size)


def test_any_flipped_bit_is_noticed_or_harmless(store: CheckpointStore) -> None:
    """Flips bits all over every file: the checkpoint must fail to verify, or give back exactly what was saved."""
    _save(store, 10)
    wanted, expected = _abstract(_state()), digest_arrays(_state(10))
    noticed = 0
    rng = np.random.default_rng(0)
    for path in _files(store, 10):
        original = path.read_bytes()
        for bit in rng.integers(0, len(original) * 8, 4):
            flipped = bytearray(original)
            flipped[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(bytes(flipped))
            try:
                restored = store.restore(10, wanted)
            except CheckpointError:
                noticed += 1
            else:
                assert digest_arrays(restored.state) == expected
                assert (restored.record.position, restored.record.ledger) == (40, LEDGER)
        path.write_bytes(original)
    assert noticed >= 4 * (len(_files(store, 10)) - 1)  # all but blanks in the manifest
    assert store.restore(10, wanted).record.step == 10


def _flip_array_byte(store: CheckpointStore, step: int) -> None:
    """Flips bits in the middle of the largest file, where the arrays are."""
    path = max(_files(store, step), key=lambda path: path.stat().st_size)
    raw = bytearray(path.read_bytes())
    for place in range(len(raw) // 3, 2 * len(raw) // 3):
        raw[place] ^= 0xFF
    path.write_bytes(bytes(raw))


def test_damaged_newest_checkpoint_falls_back_in_one_line_and_is_set_aside(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    _save(store, 10, 20, 30)
    _flip_array_byte(store, 30)
    with caplog.at_level(logging.WARNING):
        restored = store.restore_latest(_abstract(_state()), set_aside=True)
    assert restored is not None
    assert restored.record.step == 20
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"{store.path(30)} is damaged: state/" in message
    assert message.endswith("falling back to step 20")
    assert "\n" not in message
    assert store.steps == [10, 20]
    assert (store.directory / "30.broken").is_dir()
    _save(store, 30)  # the run gets there again
    assert store.restore(30, _abstract(_state())).record.step == 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its reading tasks
def test_damage_is_noticed_without_the_checksums_of_files(store: CheckpointStore) -> None:
    """As if the process had died right after the checkpoint was complete."""
    _save(store, 10, 20)
    (store.path(20) / MANIFEST).unlink()
    _flip_array_byte(store, 20)
    restored = store.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.record.step == 10
    gc.collect()  # what Orbax left lying is complained about here and not in a later test


def test_checkpoint_whose_digests_do_not_match_is_refused_naming_the_array(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a bit had flipped on the way to disk, in a way the file format does not notice."""
    record = CheckpointRecord(
        step=10, position=0, ledger={}, config_hash="", digests={**digest_arrays(_state(10)), "step": "int32[]:0"}
    )
    _save(store, 10)
    monkeypatch.setattr(store, "read_record", lambda step: record)
    assert find_damage(record, _state(10)) == ["step"]
    with pytest.raises(CheckpointError, match=r"1 of \d+ arrays do not match their digest, first step"):
        store.restore(10, _abstract(_state()))


@pytest.mark.parametrize("wreck", ["truncate", "delete file", "empty folder"])
def test_half_written_step_is_refused(store: CheckpointStore, wreck: str) -> None:
    _save(store, 10, 20)
    largest = max(_files(store, 20), key=lambda path: path.stat().st_size)
    if wreck == "truncate":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif wreck == "delete file":
        largest.unlink()
    else:
        shutil.rmtree(store.path(20))
        store.path(20).mkdir()
    restored = store.restore_latest(_abstract(_state()))
    assert restored is not None
    assert restored.record.step == 10
    assert store.steps == [10, 20]  # only a run that owns the folder moves things


def test_unfinished_save_is_named_and_deleted(store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> None:
    _save(store, 10)
    partial = store.directory / "20.orbax-checkpoint-tmp"
    shutil.copytree(store.path(10), partial)
    assert store.steps == [10]
    with caplog.at_level(logging.WARNING):
        restored = store.restore_latest(_abstract(_state()), set_aside=True)
    assert restored is not None
    assert restored.record.step == 10
    assert "checkpoints/20 was half written" in caplog.text
    assert not partial.exists()


def test_no_checkpoint_left_to_trust_is_an_error_naming_the_folder(store: CheckpointStore) -> None:
    _save(store, 10)
    _flip_array_byte(store, 10)
    with pytest.raises(CheckpointError, match=f"none of the checkpoints .10. in {store.directory}") as raised:
        store.restore_latest(_abstract(_state()))
    assert raised.value.exit_status == 3


def test_checkpoint_of_another_model_is_a_config_error_and_not_damage(store: CheckpointStore) -> None:
    _save(store, 10)
    wider = _state()
    wider["params"]["blocks"]["kernel"] = jnp.zeros((8, 7))
    with pytest.raises(ConfigError, match=r"params\.blocks\.kernel is float32\[8,6\] there and float32\[8,7\] here"):
        store.restore_latest(_abstract(wider), set_aside=True)
    assert store.steps == [10]


def test_record_changed_by_hand_is_noticed() -> None:
    data = CheckpointRecord(step=1, position=32, ledger={}, config_hash="", digests={}).to_json()
    assert CheckpointRecord.from_json(data).position == 32
    with pytest.raises(CheckpointError, match="checksum"):
        CheckpointRecord.from_json({**data, "position": 33})
    with pytest.raises(CheckpointError, match="missing"):
        CheckpointRecord.from_json({"step": 1})


def test_read_arrays_needs_no_program(store: CheckpointStore) -> None:
    _save(store, 10)
    assert digest_arrays(store.read_arrays(10)) == store.read_record(10).digests


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.checkpoint\.keep=0"):
        CheckpointStore(tmp_path, keep=0)


@pytest.mark.slow  # the limit holds for the whole process: another thread's write can meet it first
# Orbax's other writing tasks are cancelled after their event loop is gone; Python says so when it collects them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_save_on_a_full_disk_leaves_the_last_good_step_intact(store: CheckpointStore) -> None:
    """A limit on the size of files stands in for the full disk: writing beyond it fails the same way."""
    _save(store, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"step 20 could not be written.*last good checkpoint is step 10"
        ) as e:
            _save(store, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    assert e.value.exit_status == 3
    assert store.steps == [10]
    assert store.partial_steps == []
    assert store.restore(10, _abstract(_state())).record.step == 10
    _save(store, 20)  # space was freed
    assert store.steps == [10, 20]
