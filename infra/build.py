"""Builds what travels to AWS: the folder of a stage, its template, and the functions' code."""

import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

from infra.cloudformation import DeploymentError
from infra.configuration import StageConfiguration
from infra.python_runtime import chalice
from infra.stage import DEFAULT_REGION, PROJECT
from infra.template import merge_template
from infra.wheels import RUNTIME, WHEELS, Wheels

SBOM_PYTHON = PROJECT / ".venv" / "sbom" / "bin" / "python"
BUILDS = PROJECT / ".herald" / "build"
MAX_ZIP_BYTES = 15_000_000
LAMBDA_ROOT = PurePosixPath("/var/task")
"""The folder on Lambda that the code is unpacked to; tracebacks show it."""


def package(configuration: StageConfiguration) -> Path:
    """Write the template (`sam.json`) and the functions' code (`deployment.zip`).

    Returns their folder. Raises DeploymentError.
    """
    folder = _copy_sources(configuration)
    out = folder / "package"
    stage_name = configuration.stage.name
    packaged = subprocess.run(
        [chalice(), "package", "--stage", stage_name, "--merge-template", "merge.json", out],
        cwd=folder,
        env={"AWS_DEFAULT_REGION": DEFAULT_REGION, **os.environ, "PYTHONPATH": str(PROJECT)},
        check=False,
        stdout=subprocess.DEVNULL,
    )
    if packaged.returncode:
        raise DeploymentError("`chalice package` failed; its own message is above.")
    code = out / "deployment.zip"
    add_compiled_modules(code)
    size = code.stat().st_size
    if size > MAX_ZIP_BYTES:
        raise DeploymentError(f"{code} has {size:,} bytes; at most {MAX_ZIP_BYTES:,} are allowed.")
    return out


def bill_of_materials(configuration: StageConfiguration) -> None:
    """Write the bill of materials of a stage's code. Raises DeploymentError."""
    name = configuration.stage.name
    architecture = configuration.architecture
    wheels = Wheels(WHEELS / f"{name}-sbom")
    wheels.download(PROJECT / "requirements.txt", architecture, more=[RUNTIME])
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    out = Path(".herald") / "sbom" / f"{name}.cdx.json"
    command = [SBOM_PYTHON, "tools/sbom.py", wheels.for_lambda, architecture, version, out]
    if subprocess.run(command, cwd=PROJECT, check=False).returncode:
        raise DeploymentError("The bill of materials can't be written; the reason is above.")


def _copy_sources(configuration: StageConfiguration) -> Path:
    """Copy the app and its configuration into a new folder, so that no other file of the working
    copy is packaged. Returns the folder."""
    folder = BUILDS / configuration.stage.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / ".chalice").mkdir(parents=True)
    for file in ("app.py", "requirements.txt", ".chalice/config.json"):
        shutil.copy(PROJECT / file, folder / file)
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "chalicelib", folder / "chalicelib", ignore=no_cache)
    (folder / "merge.json").write_text(json.dumps(merge_template(configuration), indent=2) + "\n")
    return folder


def add_compiled_modules(code: Path) -> None:
    """Add the compiled form of each module to a zip, next to its source.

    Lambda's folder is read-only, so Python would otherwise compile every module at each cold start,
    which takes twice as long. Bytecode works only for the Python version that compiled it; that is
    the functions' version, since Chalice deploys to the runtime that it runs on.

    Raises py_compile.PyCompileError for a module that isn't valid Python.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(code, "a", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in archive.namelist():
            if name.endswith(".py"):
                compiled = _compile(Path(archive.extract(name, folder)), name)
                entry = zipfile.ZipInfo(importlib.util.cache_from_source(name))
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, compiled)


def _compile(source: Path, name: str) -> bytes:
    """Return the bytecode file of a module that is called `name` in the package.

    Python loads it without comparing it with its source: https://peps.python.org/pep-0552/
    """
    compiled = source.with_suffix(".pyc")
    py_compile.compile(
        str(source),
        cfile=str(compiled),
        dfile=str(LAMBDA_ROOT / name),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return compiled.read_bytes()
