"""What a checkpoint says about itself: step, data position, ledger totals, configuration, digests.

Owns the record's JSON form and its checksum, and the comparison of its arrays with those of a program. Reads and
writes no files (``training.checkpoint``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from wamjax.errors import ConfigError, DataError
from wamjax.training.digest import describe_array, path_name


class CheckpointError(DataError):
    """A checkpoint that cannot be written, read or trusted (exit 3)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What a checkpoint says about itself.

    Attributes:
      step: Optimizer updates the state has seen.
      position: Samples the data stream had handed out, over all hosts.
      ledger: Totals of the run ledger.
      config_hash: Hash of the configuration that trained it.
      digests: Array path -> ``dtype[shape]:digest``.
      base_hash: Hash of the parameters that were kept from a base and are not in the checkpoint; None if it has all.
    """

    step: int
    position: int
    ledger: dict[str, Any]
    config_hash: str
    digests: dict[str, str]
    base_hash: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON data with a checksum over itself."""
        fields = dataclasses.asdict(self)
        if self.base_hash is None:
            del fields["base_hash"]
        return {**fields, "checksum": _checksum(fields)}

    @classmethod
    def from_json(cls, data: Any) -> CheckpointRecord:
        """Returns the record in ``data``.

        Raises:
          CheckpointError: ``data`` has other fields, or does not match its checksum.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or {*data, "base_hash"} != {*names, "checksum"}:
            raise CheckpointError("its record is missing or has unknown fields")
        fields = {name: value for name, value in data.items() if name != "checksum"}
        if _checksum(fields) != data["checksum"]:
            raise CheckpointError("its record does not match the record's checksum")
        return cls(**fields)


def require_same_arrays(path: Path, record: CheckpointRecord, abstract_state: Any) -> None:
    """Raises ``ConfigError`` where names, shapes or dtypes of checkpoint and program differ."""
    flat = jax.tree_util.tree_leaves_with_path(abstract_state)
    wanted = {path_name(key): describe_array(leaf) for key, leaf in flat}
    stored = {name: digest.rsplit(":", 1)[0] for name, digest in record.digests.items()}
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        if stored.get(name) != wanted.get(name):
            raise ConfigError(
                f"checkpoint {path} does not fit this configuration: array {name} is {stored.get(name, 'absent')} "
                f"there and {wanted.get(name, 'absent')} here; use the configuration in the run's run.json"
            )


def require_same_base(path: Path, record: CheckpointRecord, base_hash: str | None) -> None:
    """Raises ``ConfigError`` where the checkpoint was trained beside other kept parameters than those at hand."""
    if record.base_hash != base_hash:
        names = [f"base {name}" if name else "no base" for name in (record.base_hash, base_hash)]
        raise ConfigError(
            f"checkpoint {path} was trained on {names[0]} and this run has {names[1]}; set config.finetune.base to the "
            "folder it was trained on"
        )


def _checksum(fields: dict[str, Any]) -> str:
    """Returns the SHA-256 of ``fields`` as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
