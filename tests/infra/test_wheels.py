"""The packages for Lambda are those that the lock has hashes of."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gateway.configuration import PROJECT
from infra.cloudformation import DeploymentError
from infra.wheels import Wheels, without_hashes

METADATA = "Metadata-Version: 2.1\nName: herald-{name}\nVersion: {version}\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with packages, the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(index: Path, name: str, version: str = "1.0", content: str = "") -> str:
    """Publish a package; return its line for a lock."""
    info = f"herald_{name}-{version}.dist-info"
    wheel = index / f"herald_{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"herald_{name}.py", content)
        archive.writestr(f"{info}/METADATA", METADATA.format(name=name, version=version))
        archive.writestr(f"{info}/WHEEL", TAGS)
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"herald-{name}=={version} \\\n    --hash=sha256:{digest}\n"


def write(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_locked_package_is_downloaded_for_lambda_and_for_this_machine(
    index: Path, tmp_path: Path
) -> None:
    lock = write(tmp_path, "lock.txt", publish(index, "one") + publish(index, "other"))
    requirements = write(tmp_path, "requirements.txt", "# a comment\nherald-one==1.0  # why\n")
    wheels = Wheels(tmp_path / "two words")
    wheels.download(requirements, "arm64", lock=lock)
    assert [one.name for one in wheels.for_lambda.iterdir()] == ["herald_one-1.0-py3-none-any.whl"]
    assert without_hashes(requirements, lock) == []


def test_a_package_that_is_not_the_locked_one_is_refused(index: Path, tmp_path: Path) -> None:
    lock = write(tmp_path, "lock.txt", publish(index, "one"))
    publish(index, "one", content="import malice")  # the same name and version
    requirements = write(tmp_path, "requirements.txt", "herald-one==1.0\n")
    with pytest.raises(DeploymentError, match="DO NOT MATCH THE HASHES"):
        Wheels(tmp_path / "wheels").download(requirements, "arm64", lock=lock)


def test_pip_finds_only_what_was_downloaded(index: Path, tmp_path: Path) -> None:
    """As Chalice calls it: https://pip.pypa.io/en/stable/topics/configuration/"""
    lock = write(tmp_path, "lock.txt", publish(index, "one"))
    requirements = write(tmp_path, "requirements.txt", "herald-one==1.0\n")
    wheels = Wheels(tmp_path / "two words")
    wheels.download(requirements, "arm64", lock=lock)
    publish(index, "other")
    found = {
        name: subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--dest", tmp_path / "out", name],
            env=wheels.variables,
            capture_output=True,
            check=False,
        ).returncode
        for name in ("herald-one==1.0", "herald-other==1.0")
    }
    assert found == {"herald-one==1.0": 0, "herald-other==1.0": 1}


@pytest.mark.parametrize(
    "requirement",
    ["herald-two==1.0", "herald-one==2.0", "herald-one @ https://example.com/herald_one.zip"],
)
def test_a_requirement_that_the_lock_lacks_has_no_hashes(
    index: Path, tmp_path: Path, requirement: str
) -> None:
    lock = write(tmp_path, "lock.txt", publish(index, "one"))
    requirements = write(tmp_path, "requirements.txt", f"{requirement}\nherald-one>=1\n")
    [found] = without_hashes(requirements, lock)
    assert found.partition("=")[0].partition(" ")[0] == requirement.partition("=")[0].split()[0]


def test_every_requirement_of_the_project_has_hashes() -> None:
    assert without_hashes(PROJECT / "requirements.txt") == []
