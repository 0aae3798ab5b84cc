"""The bucket of a stage."""

from typing import Any

import boto3
import pytest

from infra.bucket import Bucket
from infra.chalice_deployment import ChaliceDeployment
from infra.configuration import StageConfiguration
from infra.stack_deployment import StackDeployment
from infra.stage import Stage

DEV = Stage("dev")
ACCOUNT = "123456789012"  # moto's


class CountedSession:
    """A session that counts the clients that are made of each service."""

    def __init__(self) -> None:
        self._session: Any = boto3.Session()
        self.region_name = self._session.region_name
        self.clients: list[str] = []

    def client(self, service: str) -> Any:
        self.clients.append(service)
        return self._session.client(service)


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
@pytest.mark.usefixtures("aws")
def test_a_bucket_is_created_once_and_deleted_with_what_it_holds(region: str) -> None:
    bucket = Bucket(boto3.Session(region_name=region), DEV)
    assert bucket.name == f"herald-dev-code-{ACCOUNT}-{region}"
    assert bucket.read("nothing") is None
    bucket.create()
    bucket.create()
    key = bucket.upload(b"{}", "json")
    assert bucket.read(key) == b"{}"
    assert bucket.read("nothing") is None
    assert bucket.url(key).endswith(f"/{bucket.name}/{key}")
    bucket.delete()
    assert bucket.read(key) is None
    bucket.delete()


@pytest.mark.usefixtures("aws")
def test_content_is_stored_under_a_key_of_its_own() -> None:
    bucket = Bucket(boto3.Session(region_name="us-east-1"), DEV)
    bucket.create()
    assert bucket.upload(b"one", "zip") == bucket.upload(b"one", "zip")
    assert bucket.upload(b"one", "zip") != bucket.upload(b"other", "zip")


@pytest.mark.usefixtures("aws")
def test_the_account_is_asked_for_once_and_only_if_the_bucket_is_used() -> None:
    session: Any = CountedSession()
    StackDeployment(DEV, session)
    ChaliceDeployment(StageConfiguration(DEV), session)
    bucket = Bucket(session, DEV)
    assert session.clients.count("sts") == 0
    bucket.create()
    bucket.upload(b"content", "txt")
    assert session.clients.count("sts") == 1
