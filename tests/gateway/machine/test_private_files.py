"""Files that only their owner can read."""

from pathlib import Path

import pytest

from gateway.machine import private_files


def test_a_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    private_files.replace(path, "one")
    private_files.replace(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_created_only_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    private_files.create(path, "one")
    with pytest.raises(FileExistsError):
        private_files.create(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
