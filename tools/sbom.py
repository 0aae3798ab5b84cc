"""Write a software bill of materials (SBOM) of what travels to Lambda, in CycloneDX's JSON.

    python tools/sbom.py WHEELS ARCHITECTURE VERSION FILE

WHEELS is the folder with the wheels, ARCHITECTURE is Lambda's, VERSION is the application's. The
document says the name, the version, the license and the SHA-256 of each wheel, and no path.
https://cyclonedx.org/docs/1.6/json/
"""

import argparse
import email.parser
import hashlib
import re
import sys
import zipfile
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document. Return the exit status."""
    parser = argparse.ArgumentParser(prog="tools/sbom.py")
    parser.add_argument("wheels", type=Path)
    parser.add_argument("architecture")
    parser.add_argument("version")
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    wheels = sorted(given.wheels.glob("*.whl"))
    text = JsonV1Dot6(bill(wheels, given.architecture, given.version)).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None or not wheels:
        print(f"The document is not valid: {error or 'there are no wheels'}", file=sys.stderr)
        return 1
    given.file.parent.mkdir(parents=True, exist_ok=True)
    given.file.write_text(text + "\n")
    print(f"{given.file}  {len(wheels)} packages for {given.architecture}, each with its SHA-256")
    return 0


def bill(wheels: Sequence[Path], architecture: str, version: str) -> Bom:
    """Return the bill of these wheels, on which the application depends."""
    application = Component(
        name="herald",
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref="herald",
        properties=[Property(name="aws:lambda:architecture", value=architecture)],
    )
    bom = Bom()
    bom.metadata.component = application
    metadata = {wheel: read_metadata(wheel) for wheel in wheels}
    components = {name_of(it): component(wheel, it) for wheel, it in metadata.items()}
    for one in components.values():
        bom.components.add(one)
    bom.register_dependency(application, components.values())
    for it in metadata.values():
        needed = [components[name] for name in requirements(it) if name in components]
        bom.register_dependency(components[name_of(it)], needed)
    return bom


def component(wheel: Path, metadata: Message) -> Component:
    """Return the component of a wheel."""
    name, version = name_of(metadata), str(metadata["Version"])
    text = metadata["License-Expression"] or metadata["License"] or ""
    licenses = [LicenseFactory().make_from_string(text)] if text and "\n" not in text else []
    purl = PackageURL(type="pypi", name=name, version=version)
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        licenses=licenses,
        hashes=[
            HashType(
                alg=HashAlgorithm.SHA_256, content=hashlib.sha256(wheel.read_bytes()).hexdigest()
            )
        ],
        properties=[Property(name="python:wheel", value=wheel.name)],
    )


def read_metadata(wheel: Path) -> Message:
    """Return the core metadata of a wheel.

    https://packaging.python.org/en/latest/specifications/core-metadata/
    """
    with zipfile.ZipFile(wheel) as archive:
        [name] = [
            one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one)
        ]
        return email.parser.Parser().parsestr(archive.read(name).decode())


def name_of(metadata: Message) -> str:
    """Return the normalized name of a package."""
    return normalized(str(metadata["Name"]))


def requirements(metadata: Message) -> list[str]:
    """Return the normalized names of what a package needs without extras."""
    lines = [str(one) for one in metadata.get_all("Requires-Dist", [])]
    return [normalized(re.split(r"[^\w.-]", one)[0]) for one in lines if "extra ==" not in one]


def normalized(name: str) -> str:
    """Return a name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
