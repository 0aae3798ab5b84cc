"""Every package and every dependency of it is pinned with hashes."""

import json
import re
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.configuration import PROJECT

PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[a-z0-9,-]+\])?==([A-Za-z0-9.]+)")
HASHES = re.compile(r"( +--hash=sha256:[0-9a-f]{64})+")
COPIES = {"node_modules", "mutants"}  # folders that commands make
NPM_LOCKS = sorted(
    file for file in PROJECT.glob("**/package-lock.json") if not COPIES.intersection(file.parts)
)
COMPILED = [PROJECT / "requirements-dev.txt", *(PROJECT / "requirements").glob("*.txt")]


def lines(file: Path) -> list[str]:
    """Return the requirements in a file, one for each line, without comments."""
    text = file.read_text().replace("\\\n", "")
    return list(filter(None, (line.partition("#")[0].strip() for line in text.splitlines())))


def pins(file: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines(file):
        pin = PIN.match(line)
        assert pin is not None, f"{file}: {line} is not pinned"
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def asked_for(file: Path) -> list[Requirement]:
    """Return the requirements in an input and in the files that it includes by `-r`."""
    found = []
    for line in lines(file):
        option, _, name = line.partition(" ")
        if option == "-r":
            found += asked_for(file.parent / name)
        elif option != "-c":
            found.append(Requirement(line))
    return found


def test_installed_packages_have_their_pinned_versions() -> None:
    pinned = {**pins(PROJECT / "requirements-dev.txt"), **pins(PROJECT / "requirements" / "uv.txt")}
    for installed in distributions():
        version = pinned.get(canonicalize_name(installed.name))
        assert installed.version == version, f"{installed.name}: run make lock"


def test_the_packages_for_lambda_include_their_dependencies() -> None:
    """Chalice installs only the packages in requirements.txt, so it must list dependencies, too."""
    travelling = pins(PROJECT / "requirements.txt")
    for name in travelling:
        for needed in map(Requirement, distribution(name).requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in travelling


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.stem)
def test_a_compiled_file_satisfies_its_input(file: Path) -> None:
    compiled = pins(file)
    for requirement in asked_for(file.with_suffix(".in")):
        version = compiled.get(canonicalize_name(requirement.name))
        assert version is not None, f"{file.name} has no {requirement.name}: make lock"
        assert requirement.specifier.contains(version, prereleases=True), "make lock"


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.stem)
def test_every_compiled_requirement_has_a_version_and_hashes(file: Path) -> None:
    for line in lines(file):
        requirement, hashes, rest = line.partition(" --hash")
        assert PIN.fullmatch(requirement.partition(" ;")[0].strip()), line
        assert HASHES.fullmatch(hashes + rest), line


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.stem)
def test_a_compiled_file_records_no_package_index(file: Path) -> None:
    text = file.read_text()
    for word in ("://", "file:", " @ ", "--index", "--extra", "--find", "# via", "# from"):
        assert word not in text


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.stem)
def test_a_compiled_file_has_the_extras_that_its_packages_need(file: Path) -> None:
    """pip needs an entry `coverage[toml]` if a package requires that; `coverage` isn't enough."""
    extras = {
        canonicalize_name(needed.name): needed.extras
        for needed in map(Requirement, (line.partition(" --hash")[0] for line in lines(file)))
    }
    for installed in distributions():
        if canonicalize_name(installed.name) in extras:
            for needed in map(Requirement, installed.requires or []):
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    assert needed.extras <= extras.get(canonicalize_name(needed.name), set())


def test_every_input_is_compiled() -> None:
    inputs = {PROJECT / "requirements-dev.in", *(PROJECT / "requirements").glob("*.in")}
    assert {file.with_suffix(".txt") for file in inputs} == set(COMPILED)


@pytest.mark.parametrize("lock", NPM_LOCKS, ids=lambda lock: lock.parent.name)
def test_every_npm_package_is_locked_with_its_hash_and_no_registry(lock: Path) -> None:
    """https://docs.npmjs.com/cli/v11/configuring-npm/package-lock-json"""
    packages = json.loads(lock.read_text())["packages"]
    for name, package in packages.items():
        if name:
            assert package["integrity"].startswith("sha512-"), name
            assert "resolved" not in package, name


def test_npm_installs_what_is_locked() -> None:
    """`npm ci` fails where the lock and package.json disagree; `npm install` changes the lock."""
    manifests = {file.parent for file in PROJECT.glob("**/package.json")}
    own = {folder for folder in manifests if not COPIES.intersection(folder.parts)}
    installed = {folder for folder in own if json.loads((folder / "package.json").read_text())}
    assert {lock.parent for lock in NPM_LOCKS} == installed
    makefile = (PROJECT / "Makefile").read_text()
    assert makefile.count("npm ci ") == len(NPM_LOCKS)
    assert "npm install" not in makefile
