"""Deploys a packaged stage as one CloudFormation stack, and destroys it."""

import json
from collections.abc import Mapping
from pathlib import Path

import boto3

from infra.bucket import Bucket
from infra.cloudformation import Stack
from infra.stage import Stage
from infra.tables import delete_tables


class StackDeployment:
    """A stage deployed from the packaged template, in the account and the region of a session."""

    def __init__(self, stage: Stage, session: boto3.Session) -> None:
        self._stage = stage
        self._session = session
        self._bucket = Bucket(session, stage)
        self._stack = Stack(session, stage.stack_name)

    def exists(self) -> bool:
        """Return whether the stage was deployed by this method."""
        return self._stack.exists()

    def deploy(self, package: Path, parameters: Mapping[str, str]) -> dict[str, str]:
        """Deploy the folder that `build.package` wrote.

        Returns the stack's outputs. Raises DeploymentError.
        """
        self._bucket.create()
        template = json.loads((package / "sam.json").read_text())
        code = self._bucket.upload((package / "deployment.zip").read_bytes(), "zip")
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::Serverless::Function":
                resource["Properties"]["CodeUri"] = {"Bucket": self._bucket.name, "Key": code}
        return self._stack.apply(template, self._bucket, parameters)

    def destroy(self) -> None:
        """Delete the stack, the tables (which outlive a stack), and the bucket."""
        self._stack.delete()
        delete_tables(self._stage, self._session)
        self._bucket.delete()
