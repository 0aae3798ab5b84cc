"""Files that only their owner can read (mode 600), written completely or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write a file, and replace the one that may exist."""
    with _temporary_file(path, text) as temporary:
        os.replace(temporary, path)


def create(path: Path, text: str) -> None:
    """Write a new file. Raises FileExistsError if another process was faster."""
    with _temporary_file(path, text) as temporary:
        os.link(temporary, path)


def opener(path: str, flags: int) -> int:
    """Open a file, with mode 600 if it is new: an opener for `open`."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _temporary_file(path: Path, text: str) -> Iterator[str]:
    """Make a temporary file (mkstemp gives it mode 600) beside `path`, and the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
