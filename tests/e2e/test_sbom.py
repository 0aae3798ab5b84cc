"""`make sbom`: what travels to Lambda, as a document in CycloneDX's JSON."""

import json
import re
import subprocess
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from gateway.configuration import PROJECT
from tests.e2e.deployment import without_aws
from tests.project.test_requirements import pins


@pytest.fixture(scope="module")
def text() -> str:
    """The document of the stage `prod`, whose schema `make sbom` has checked."""
    subprocess.run(
        ["make", "sbom", "STAGE=prod"],
        cwd=PROJECT,
        env=without_aws(),
        check=True,
        capture_output=True,
    )
    return (PROJECT / ".herald" / "sbom" / "prod.cdx.json").read_text()


def test_the_document_has_every_package_that_travels_with_its_locked_hash(text: str) -> None:
    """Chalice packs its own runtime beside the packages in requirements.txt."""
    document: Any = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    versions = {one["name"]: one["version"] for one in document["components"]}
    chalice = pins(PROJECT / "requirements-dev.txt")["chalice"]
    assert versions == {**pins(PROJECT / "requirements.txt"), "chalice": chalice}
    lock = (PROJECT / "requirements-dev.txt").read_text()
    for component in document["components"]:
        assert component["purl"] == (
            f"pkg:pypi/{canonicalize_name(component['name'])}@{component['version']}"
        )
        [digest] = component["hashes"]
        assert f"--hash=sha256:{digest['content']}" in lock
        assert component["licenses"]


def test_the_document_names_neither_a_folder_nor_a_host(text: str) -> None:
    assert str(PROJECT) not in text
    assert set(re.findall(r"https?://[^/]+", text)) == {"http://cyclonedx.org"}
