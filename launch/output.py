"""Files that a command is asked to write: refused before the work, not after it."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.sources.remote import refuse_address
from wamjax.errors import ConfigError


def check_writable(flag: str, name: str | None) -> None:
    """Raises ``ConfigError`` if the file that ``--flag`` names could not be written: no disk, or no folder for it."""
    if name:
        refuse_address(name, f"--{flag}")
    if name and not Path(name).absolute().parent.is_dir():
        raise ConfigError(f"--{flag}={name}: no folder {Path(name).parent}; create it or name another file")
