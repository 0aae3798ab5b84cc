"""Deletes a stage's tables, which are retained when their stack is deleted."""

import boto3
from botocore.exceptions import ClientError

from infra.stage import TABLES, Stage


def delete_tables(stage: Stage, session: boto3.Session) -> None:
    """Delete each of the stage's tables that exists."""
    dynamodb = session.client("dynamodb")
    for table in TABLES.values():
        try:
            dynamodb.delete_table(TableName=stage.named(table))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
