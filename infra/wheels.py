"""The packages that travel to Lambda, downloaded by their hashes.

Chalice asks pip for single packages, and so without hashes. Before it does, they are downloaded
with the hashes of `requirements-dev.txt`, and Chalice's pip finds packages nowhere else.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from chalice.deploy.packager import DependencyBuilder
from chalice.utils import OSUtils
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.cloudformation import DeploymentError
from infra.stage import PROJECT

WHEELS = PROJECT / ".herald" / "wheels"
LOCK = PROJECT / "requirements-dev.txt"
ABI = f"cp{sys.version_info.major}{sys.version_info.minor}"
RUNTIME = "chalice"  # packed by Chalice from this environment, which was installed by hashes


class Wheels:
    """A folder with the packages of a project, for Lambda and for this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def for_lambda(self) -> Path:
        """The folder with the packages that travel."""
        return self._folder / "lambda"

    @property
    def _for_this_machine(self) -> Path:
        return self._folder / "this-machine"

    def download(
        self,
        requirements: Path,
        architecture: str,
        *,
        more: Iterable[str] = (),
        lock: Path = LOCK,
    ) -> None:
        """Download the requirements and what they need, by the hashes of `lock`.

        Chalice first asks for the packages of this machine, then for those of Lambda.

        Args:
            requirements: The file that Chalice reads.
            architecture: Lambda's name for the functions' processors.
            more: Names of packages to download besides, without what they need.
            lock: The compiled requirements, with hashes.

        Raises:
            DeploymentError: A package can't be downloaded, or isn't the locked one.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        locked = _locked(lock)
        asked_for = (canonicalize_name(one.name) for one in read(requirements))
        names = {*_with_dependencies(asked_for), *more}
        pinned = self._folder / "requirements.txt"
        pinned.write_text("".join(f"{locked[name]}\n" for name in sorted(names) if name in locked))
        _pip_download(pinned, self._for_this_machine)
        _pip_download(pinned, self.for_lambda, *_platform(architecture))

    @property
    def variables(self) -> dict[str, str]:
        """The variables that make pip find packages in this folder alone."""
        folders = (self.for_lambda, self._for_this_machine)
        return {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": " ".join(folder.resolve().as_uri() for folder in folders),
        }


def without_hashes(requirements: Path, lock: Path = LOCK) -> list[str]:
    """Return the requirements that `lock` doesn't satisfy with a package that it has hashes of."""
    locked = _locked(lock)
    return [
        str(one)
        for one in read(requirements)
        if one.url is not None or not _satisfies(locked.get(canonicalize_name(one.name)), one)
    ]


def read(file: Path) -> Iterator[Requirement]:
    """Yield the requirements in a file that are for this machine."""
    for line in file.read_text().splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text and not text.startswith("-"):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def _locked(lock: Path) -> dict[str, str]:
    """Return the lines of a compiled file, each with its hashes, by name."""
    lines = lock.read_text().replace("\\\n", "").splitlines()
    entries = [re.sub(r"\s+", " ", line).strip() for line in lines]
    return {
        canonicalize_name(Requirement(entry.partition(" --hash")[0]).name): entry
        for entry in entries
        if " --hash=" in entry and _is_for_this_machine(entry)
    }


def _is_for_this_machine(entry: str) -> bool:
    marker = Requirement(entry.partition(" --hash")[0]).marker
    return marker is None or marker.evaluate()


def _satisfies(entry: str | None, requirement: Requirement) -> bool:
    if entry is None:
        return False
    [pin] = Requirement(entry.partition(" --hash")[0]).specifier
    return requirement.specifier.contains(pin.version, prereleases=True)


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """Return the names, and those of the packages that they need, as they are installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _needed_by(name)
    return found


def _needed_by(name: str) -> Iterator[str]:
    try:
        requirements = [Requirement(one) for one in distribution(name).requires or []]
    except PackageNotFoundError:
        return
    for one in requirements:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield canonicalize_name(one.name)


def _platform(architecture: str) -> list[str]:
    """Return pip's options for a package that works on Lambda, as Chalice chooses them."""
    builder = DependencyBuilder(OSUtils(), architecture=architecture)
    platforms = [f"--platform={one}" for one in builder._get_pip_platforms(ABI)]
    return [*platforms, "--implementation=cp", f"--abi={ABI}"]


def _pip_download(pinned: Path, folder: Path, *options: str) -> None:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(pinned), *options),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise DeploymentError(f"The packages for Lambda can't be downloaded:\n{done.stderr}")
