"""The resources that `make resources` creates, and the check for missing ones."""

from pathlib import Path

import boto3
import pytest

from infra import chalice_deployment
from infra.chalice_deployment import (
    ChaliceDeployment,
    has_signing_key,
    kms_key_of,
    missing_resources,
)
from infra.configuration import StageConfiguration
from infra.stage import TABLES, Stage

PREPARED = Stage("prepared")
NAMES = [
    *(f"table {PREPARED.named(table)}" for table in TABLES.values()),
    "queue herald-prepared-fanout",
]


def test_a_stage_lacks_nothing_once_its_resources_are_made(
    session: boto3.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chalice_deployment, "PROJECT", tmp_path)
    deployment = ChaliceDeployment(StageConfiguration(PREPARED), session)
    signing_key = f"secret {PREPARED.signing_key}"
    assert missing_resources(PREPARED, session, signing_key=True) == [*NAMES, signing_key]
    assert missing_resources(PREPARED, session, signing_key=False) == NAMES
    assert not deployment.exists()

    assert not deployment.make_resources({})  # nothing is deployed that more could be attached to
    assert deployment.exists()
    assert missing_resources(PREPARED, session, signing_key=True) == []
    secret = session.client("secretsmanager").get_secret_value(SecretId=PREPARED.signing_key)
    assert len(secret["SecretString"]) == 64

    deployment.destroy()
    assert not deployment.exists()
    assert missing_resources(PREPARED, session, signing_key=False) == NAMES


@pytest.mark.usefixtures("aws")
def test_a_signing_key_that_is_scheduled_for_deletion_counts_as_missing() -> None:
    session = boto3.Session()
    secrets = session.client("secretsmanager")
    assert not has_signing_key(PREPARED, session)
    secrets.create_secret(Name=PREPARED.signing_key, SecretString="x" * 64)
    assert has_signing_key(PREPARED, session)
    secrets.delete_secret(SecretId=PREPARED.signing_key)
    assert not has_signing_key(PREPARED, session)


def test_a_stage_whose_resources_another_tool_made_has_no_key_of_its_own(
    session: boto3.Session,
) -> None:
    """Resources are found by name, so they need no stack."""
    assert kms_key_of(Stage("foreign"), session) is None
