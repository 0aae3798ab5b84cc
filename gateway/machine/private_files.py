"""Files that their owner alone may read (mode 600), written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write a file, in the place of one that may be there."""
    with _written_beside(path, text) as temporary:
        os.replace(temporary, path)


def create(path: Path, text: str) -> None:
    """Write a file. Raises FileExistsError where another process was faster."""
    with _written_beside(path, text) as temporary:
        os.link(temporary, path)


@contextlib.contextmanager
def _written_beside(path: Path, text: str) -> Iterator[str]:
    """A temporary file (mkstemp gives it mode 600) in the folder of `path`, which is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
