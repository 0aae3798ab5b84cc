"""The tables and queues of `resources.json`, and how the emulators create them."""

import json
from typing import Any

import boto3
import pytest

from chalicelib.fanout.progress import LAST_TRY_MS
from chalicelib.fanout.queue import MAX_RECEIVES
from chalicelib.store.schema import QUEUED_SECONDS
from gateway.aws.emulator import batch_seconds, create_queues, create_tables
from gateway.configuration import PROJECT
from infra.configuration import StageConfiguration
from infra.stage import Stage

TEMPLATE = json.loads((PROJECT / "infra" / "resources.json").read_text())
TABLES = {
    name: resource["Properties"]
    for name, resource in TEMPLATE["Resources"].items()
    if resource["Type"] == "AWS::DynamoDB::Table"
}


def test_the_queues_settings_match_the_workers_limits() -> None:
    queue = TEMPLATE["Resources"]["FanoutQueue"]["Properties"]
    chalice = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    assert queue["RedrivePolicy"]["maxReceiveCount"] == MAX_RECEIVES
    assert 1000 * chalice["lambda_timeout"] < LAST_TRY_MS
    assert queue["MessageRetentionPeriod"] == QUEUED_SECONDS  # longer there is nothing to deliver
    dead_letters = TEMPLATE["Resources"]["FanoutDeadLetterQueue"]["Properties"]
    assert dead_letters["MessageRetentionPeriod"] == 14 * 24 * 60 * 60  # SQS's longest
    assert queue["SqsManagedSseEnabled"] is dead_letters["SqsManagedSseEnabled"] is True


@pytest.mark.parametrize("window", [0, 90, 300])
@pytest.mark.usefixtures("aws")
def test_the_local_queue_hides_a_job_as_long_as_the_deployed_one(window: int) -> None:
    sqs = boto3.client("sqs", region_name="us-east-1")
    variables = {"HERALD_FANOUT_BATCH_SECONDS": str(window)}
    url = create_queues(sqs, batch_seconds(variables))["FanoutQueue"]
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
    chalice = {"environment_variables": variables, "lambda_timeout": 30}
    configuration = StageConfiguration(Stage("dev"), chalice)
    deployed = configuration.resources["FanoutQueue"]["Properties"]["VisibilityTimeout"]
    assert int(answer["Attributes"]["VisibilityTimeout"]) == deployed == 180 + window


@pytest.fixture(params=["moto", "ministack"])
def deployed(request: pytest.FixtureRequest) -> Any:
    """A DynamoDB client of an emulator with the deployed tables."""
    if request.param == "ministack":
        return request.getfixturevalue("ministack")
    request.getfixturevalue("aws")
    client = request.getfixturevalue("moto_client")
    create_tables(client, {})
    return client


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_tables_are_encrypted_with_kms_and_can_be_restored(table: Any, deployed: Any) -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-dynamodb-table.html"""
    assert table["SSESpecification"] == {"SSEEnabled": True, "SSEType": "KMS"}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    backups = deployed.describe_continuous_backups(TableName=table["TableName"])
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    assert recovery["PointInTimeRecoveryStatus"] == "ENABLED"
    described = deployed.describe_table(TableName=table["TableName"])["Table"]
    assert described["SSEDescription"]["SSEType"] == "KMS"


def test_items_expire(deployed: Any) -> None:
    for table in TABLES.values():
        answer = deployed.describe_time_to_live(TableName=table["TableName"])
        described = answer["TimeToLiveDescription"]
        assert described == {"AttributeName": "expiresAt", "TimeToLiveStatus": "ENABLED"}
