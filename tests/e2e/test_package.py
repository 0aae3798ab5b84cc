"""What Chalice packs for Lambda really holds what Herald needs there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from gateway.configuration import PROJECT

MAX_BYTES = 10_000_000
COMPILED = ("_cffi_backend.", "cryptography/hazmat/bindings/_rust.", "httptools/parser/parser.")


def test_the_package_is_complete_and_small(checkout: Path, tmp_path: Path) -> None:
    """Chalice leaves out what it finds no wheel for, with no more than a warning."""
    shutil.copy(PROJECT / "requirements.txt", checkout)
    chalice = Path(sys.executable).with_name("chalice")
    subprocess.run(
        [chalice, "package", "--stage", "prod", str(tmp_path)],
        cwd=checkout,
        env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"},
        check=True,
        capture_output=True,
    )
    package = tmp_path / "deployment.zip"
    assert package.stat().st_size < MAX_BYTES
    names = zipfile.ZipFile(package).namelist()
    assert {"app.py", "chalicelib/auth.py", "joserfc/jws.py", "pycparser/__init__.py"} <= set(names)
    for prefix in COMPILED:
        assert any(name.startswith(prefix) and name.endswith(".so") for name in names)
    assert not any(name.startswith(("boto3/", "gateway/", "tests/")) for name in names)
