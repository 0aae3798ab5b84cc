"""The functions' code, as it is packaged."""

import importlib.machinery
import importlib.util
import py_compile
import zipfile
from pathlib import Path
from types import CodeType

import pytest

from infra.build import add_compiled_modules


def test_each_module_of_a_package_is_compiled_for_lambdas_folder(tmp_path: Path) -> None:
    code = write(tmp_path / "code.zip", {"app.py": "x = 1\n", "room/part.py": "", "room/a.txt": ""})
    add_compiled_modules(code)
    with zipfile.ZipFile(code) as archive:
        added = set(archive.namelist()) - {"app.py", "room/part.py", "room/a.txt"}
        assert added == {cached("app.py"), cached("room/part.py")}
        assert load(archive, "app.py", tmp_path).co_filename == "/var/task/app.py"
        assert load(archive, "room/part.py", tmp_path).co_filename == "/var/task/room/part.py"


def test_a_compiled_module_is_used_without_a_look_at_its_source(tmp_path: Path) -> None:
    """Its flags are those of an unchecked hash: https://peps.python.org/pep-0552/"""
    code = write(tmp_path / "code.zip", {"app.py": "x = 1\n"})
    add_compiled_modules(code)
    with zipfile.ZipFile(code) as archive:
        bytecode = archive.read(cached("app.py"))
        assert archive.getinfo(cached("app.py")).external_attr >> 16 == 0o644
    assert bytecode[:4] == importlib.util.MAGIC_NUMBER
    assert bytecode[4:8] == b"\x01\0\0\0"
    assert bytecode[8:16] == importlib.util.source_hash(b"x = 1\n")


def test_a_module_that_is_not_python_fails_the_packaging(tmp_path: Path) -> None:
    code = write(tmp_path / "code.zip", {"app.py": "x = \n"})
    with pytest.raises(py_compile.PyCompileError, match=r"/var/task/app\.py"):
        add_compiled_modules(code)


def write(code: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(code, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return code


def cached(name: str) -> str:
    return importlib.util.cache_from_source(name)


def load(archive: zipfile.ZipFile, name: str, folder: Path) -> CodeType:
    path = archive.extract(cached(name), folder)
    loaded = importlib.machinery.SourcelessFileLoader("module", path).get_code("module")
    assert loaded is not None
    return loaded
