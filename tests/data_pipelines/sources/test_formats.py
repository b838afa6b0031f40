from pathlib import Path

import pytest

from data_pipelines.sources.formats import open_source
from wamjax.errors import DataError


def test_folder_of_no_format_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(
        DataError, match=r"is of no known format \(config\.data\.path\): looked for meta/info\.json \(LeRobot\)"
    ):
        open_source(tmp_path)


def test_missing_folder_and_single_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist \(config\.data\.path\)"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"is a file \(config\.data\.path\): expected the folder of a dataset"):
        open_source(tmp_path / "file")
