"""The functions' code, as it travels."""

import importlib.util
import marshal
import zipfile
from pathlib import Path, PurePosixPath

UNCHECKED_HASH = (1).to_bytes(4, "little")
"""A compiled module with these flags is taken as it is, without a look at its source.
https://peps.python.org/pep-0552/"""
ROOT = PurePosixPath("/var/task")  # where Lambda unpacks it


def compile_modules(code: Path) -> None:
    """Add each module of a zip in its compiled form.

    Python compiles what it finds not compiled, and Lambda's folder can't be written to: it would
    do so at each cold start, which takes twice as long then. Only the Python that compiled it
    takes it, which is the function's: Chalice deploys to the runtime that it runs on.
    """
    with zipfile.ZipFile(code, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                entry = zipfile.ZipInfo(importlib.util.cache_from_source(name))
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, compiled(archive.read(name), name))


def compiled(source: bytes, name: str) -> bytes:
    """What Python's cache would hold of a module."""
    module = compile(source, str(ROOT / name), "exec", dont_inherit=True)
    header = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH + importlib.util.source_hash(source)
    return header + marshal.dumps(module)
