"""Look for known vulnerabilities of every locked package, with pip-audit.

    python tools/audit.py PIP_AUDIT FILE…

Each FILE is a compiled requirements file. The exit status is 1 if a package has a known
vulnerability, or can't be looked up while others can; it is 0 if none has, and also if the database
can't be reached, which is then said on standard error.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNREACHABLE = re.compile(
    r"Connect(ion|Timeout)|Could not connect|Max retries|Proxy|ReadTimeout|SSLError|JSONDecodeError"
    r"|ServiceError|Name or service not known"
)
"""Words of pip-audit's output if it can't ask the database, or if something else answers."""


def main(arguments: Sequence[str]) -> int:
    """Audit the files. Return the exit status."""
    pip_audit, *files = arguments
    dependencies: list[Any] = []
    for pins in sets_of_pins("".join(Path(file).read_text() for file in files)):
        options = ("--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json")
        done = subprocess.run(
            [pip_audit, *options, "--requirement", "/dev/stdin"],
            input="\n".join(pins),
            check=False,
            capture_output=True,
            text=True,
        )
        try:
            dependencies += json.loads(done.stdout)["dependencies"]
        except (KeyError, TypeError, ValueError):
            if UNREACHABLE.search(done.stderr):
                return unreachable(done.stderr.strip().splitlines()[-1])
            print(done.stderr, file=sys.stderr)
            return done.returncode or 1
    return judge(dependencies)


def sets_of_pins(text: str) -> list[list[str]]:
    """Return the pins of compiled requirements in sets with one version of each package, since
    pip-audit takes no more."""
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text):
        known = versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), [])
        if version not in known:
            known.append(version)
    count = max(map(len, versions.values()), default=0)
    return [
        [f"{name}=={known[index]}" for name, known in versions.items() if index < len(known)]
        for index in range(count)
    ]


def judge(dependencies: Sequence[Mapping[str, Any]]) -> int:
    """Print what was found, and return the exit status."""
    skipped = [one for one in dependencies if "skip_reason" in one]
    if len(skipped) == len(dependencies):
        return unreachable(skipped[0]["skip_reason"] if skipped else "there is nothing to look up")
    vulnerable = [one for one in dependencies if one.get("vulns")]
    for one in vulnerable:
        for found in one["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{one['name']} {one['version']}: {found['id']}, fixed in {fixed}")
    for one in skipped:
        print(f"{one['name']} was not looked up: {one['skip_reason']}")
    if vulnerable or skipped:
        return 1
    print(f"No known vulnerabilities in {len(dependencies)} packages.")
    return 0


def unreachable(reason: str) -> int:
    """Say that nothing was audited, and return the exit status."""
    print(
        f"NOTHING WAS AUDITED: the database of vulnerabilities can't be reached ({reason})."
        " Run `make audit` where it can.",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
