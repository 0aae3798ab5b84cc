"""Every package is pinned, and so is every one that these need."""

import re
from importlib.metadata import distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.configuration import PROJECT

PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")
NOT_OURS = {"pip", "setuptools"}  # what `python -m venv` brings


def pins(file: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (PROJECT / file).read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        if not line.startswith(("-r ", "-c ")):
            pin = PIN.fullmatch(line)
            assert pin is not None, f"{file}: {line} is not pinned"
            found[canonicalize_name(pin[1])] = pin[2]
    return found


def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = {
        **pins("constraints.txt"),
        **pins("requirements.txt"),
        **pins("requirements-dev.txt"),
        **pins("tools/uv.txt"),
    }
    for installed in distributions():
        name = canonicalize_name(installed.name)
        if name not in NOT_OURS:
            assert installed.version == pinned[name]


def test_what_travels_to_lambda_is_complete() -> None:
    """Chalice installs these alone there, so that what they need must be pinned beside them."""
    travelling = pins("requirements.txt")
    for name in travelling:
        for needed in map(Requirement, distribution(name).requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in travelling
