"""Takes a packaged stage to CloudFormation, and away again."""

import json
from collections.abc import Mapping
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

from infra.cloudformation import Bucket, Stack
from infra.stage import TABLES, Stage


class Deployment:
    """One stack of the packaged template."""

    def __init__(self, stage: Stage, session: boto3.Session) -> None:
        self._stage = stage
        self._session = session
        self._bucket = Bucket(session, f"herald-{stage.name}")
        self._stack = Stack(session, f"herald-{stage.name}")

    @property
    def exists(self) -> bool:
        """Whether the stage was deployed so."""
        return self._stack.exists

    def deploy(self, package: Path, parameters: Mapping[str, str]) -> dict[str, str]:
        """Deploy what `make package` wrote; the stack's outputs. Raises DeploymentError."""
        self._bucket.make()
        template = json.loads((package / "sam.json").read_text())
        code = self._bucket.upload((package / "deployment.zip").read_bytes(), "zip")
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::Serverless::Function":
                resource["Properties"]["CodeUri"] = {"Bucket": self._bucket.name, "Key": code}
        return self._stack.apply(template, self._bucket, parameters)

    def destroy(self) -> None:
        """Delete the stack, the tables that would outlive it, and the bucket."""
        self._stack.delete()
        delete_tables(self._stage, self._session)
        self._bucket.delete()


def delete_tables(stage: Stage, session: boto3.Session) -> None:
    """Those that are there."""
    dynamodb = session.client("dynamodb")
    for table in TABLES.values():
        try:
            dynamodb.delete_table(TableName=stage.named(table))
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
