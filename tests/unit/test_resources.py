"""What is deployed beside the functions, and that the emulator has it as AWS will."""

import json
from typing import Any

import pytest

from gateway.configuration import PROJECT

TEMPLATE = json.loads((PROJECT / "infra" / "resources.json").read_text())
TABLES = {
    name: resource["Properties"]
    for name, resource in TEMPLATE["Resources"].items()
    if resource["Type"] == "AWS::DynamoDB::Table"
}


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_tables_are_encrypted_with_kms_and_can_be_restored(table: Any, dynamodb: Any) -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-dynamodb-table.html"""
    assert table["SSESpecification"] == {"SSEEnabled": True, "SSEType": "KMS"}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    backups = dynamodb.describe_continuous_backups(TableName=table["TableName"])
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    assert recovery["PointInTimeRecoveryStatus"] == "ENABLED"
    described = dynamodb.describe_table(TableName=table["TableName"])["Table"]
    assert described["SSEDescription"]["SSEType"] == "KMS"
