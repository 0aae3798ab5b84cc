"""Chalice's record of what it made, shared through the stage's bucket."""

from pathlib import Path

import boto3
import pytest

from infra.bucket import Bucket
from infra.chalice_record import ChaliceRecord
from infra.stage import Stage

DEV = Stage("dev")
MADE = '{"resources": [{"name": "rest_api", "rest_api_id": "a"}], "schema_version": "2.0"}'


@pytest.fixture
def bucket(aws: None) -> Bucket:
    bucket = Bucket(boto3.Session(region_name="us-east-1"), DEV)
    bucket.create()
    return bucket


def record_of(clone: Path, bucket: Bucket) -> ChaliceRecord:
    return ChaliceRecord(clone, "dev", bucket)


def deploy(clone: Path, text: str = MADE) -> None:
    """Write the record that `chalice deploy` writes in a clone."""
    path = clone / ".chalice" / "deployed" / "dev.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_clone_gets_the_record_that_another_clone_has_shared(
    bucket: Bucket, tmp_path: Path
) -> None:
    deploy(tmp_path / "one")
    record_of(tmp_path / "one", bucket).share()
    other = record_of(tmp_path / "other", bucket)
    assert other.resources() == {}
    assert other.fetch()
    assert other.resources() == {"rest_api": {"name": "rest_api", "rest_api_id": "a"}}
    assert not other.fetch()


def test_nothing_is_fetched_before_a_record_is_shared(bucket: Bucket, tmp_path: Path) -> None:
    record = record_of(tmp_path, bucket)
    assert not record.fetch()
    record.share()
    assert not record.fetch()


def test_a_forgotten_record_names_no_resources(bucket: Bucket, tmp_path: Path) -> None:
    deploy(tmp_path)
    record = record_of(tmp_path, bucket)
    record.forget()
    assert record.resources() == {}
    record.forget()
