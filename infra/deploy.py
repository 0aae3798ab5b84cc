"""Takes a packaged stage to CloudFormation, and away again.

Template and code go through a bucket of the stage's own: the template is longer than what
CloudFormation takes by itself.
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from infra.stage import TABLES, Stage

Template = dict[str, Any]
Adapt = Callable[[Template], Template]

WAIT = {"Delay": 2, "MaxAttempts": 900}
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
NOTHING_TO_DO = ("didn't contain changes", "No updates are to be performed")


class DeploymentError(Exception):
    """CloudFormation did not do it; the text has its reasons, a line for each."""


class Deployment:
    """A stage's stack, in the account and the region of a session."""

    def __init__(self, stage: Stage, session: boto3.Session) -> None:
        self._stage = stage
        self._session = session
        self._stack = f"herald-{stage.name}"
        self._s3 = session.client("s3")
        self._cloudformation = session.client("cloudformation")
        account = session.client("sts").get_caller_identity()["Account"]
        self._bucket = f"{self._stack}-code-{account}-{session.region_name}"

    def deploy(
        self,
        package: Path,
        parameters: Mapping[str, str] | None = None,
        adapt: Adapt = lambda template: template,
    ) -> dict[str, str]:
        """Create the stack, or change it; its outputs.

        Template parameters that are not given stay as they were. `adapt` changes the template
        beforehand. Raises DeploymentError.
        """
        self._make_bucket()
        template = json.loads((package / "sam.json").read_text())
        code = self._upload((package / "deployment.zip").read_bytes(), "zip")
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::Serverless::Function":
                resource["Properties"]["CodeUri"] = {"Bucket": self._bucket, "Key": code}
        template = adapt(template)
        given = dict(parameters or {})
        known = set(template["Parameters"])
        for name in given.keys() - known:
            raise DeploymentError(f"{name} is no parameter; there are {', '.join(sorted(known))}")
        self._apply(self._upload(json.dumps(template).encode(), "json"), given, known)
        [stack] = self._cloudformation.describe_stacks(StackName=self._stack)["Stacks"]
        return {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}

    def destroy(self) -> None:
        """Delete the stack, the tables that would outlive it, and the bucket."""
        self._cloudformation.delete_stack(StackName=self._stack)
        self._wait("stack_delete_complete")
        dynamodb = self._session.client("dynamodb")
        for table in TABLES.values():
            try:
                dynamodb.delete_table(TableName=self._stage.named(table))
            except ClientError as error:
                if error.response["Error"]["Code"] != "ResourceNotFoundException":
                    raise
        self._delete_bucket()

    def _apply(self, template: str, given: Mapping[str, str], known: set[str]) -> None:
        """Make a change set of a template with parameters that it knows, and carry it out."""
        stack = self._current()
        kind = "CREATE" if stack is None else "UPDATE"
        before = [] if stack is None else stack.get("Parameters", [])
        kept = {one["ParameterKey"] for one in before} & known - given.keys()
        name = f"herald-{time.time_ns()}"
        self._cloudformation.create_change_set(
            StackName=self._stack,
            ChangeSetName=name,
            ChangeSetType=kind,
            TemplateURL=f"{self._s3.meta.endpoint_url}/{self._bucket}/{template}",
            Capabilities=CAPABILITIES,
            Parameters=[
                *({"ParameterKey": name, "ParameterValue": it} for name, it in given.items()),
                *({"ParameterKey": name, "UsePreviousValue": True} for name in sorted(kept)),
            ],
        )
        try:
            self._cloudformation.get_waiter("change_set_create_complete").wait(
                StackName=self._stack,
                ChangeSetName=name,
                WaiterConfig=WAIT,
            )
        except WaiterError:
            change_set = self._cloudformation.describe_change_set(
                StackName=self._stack, ChangeSetName=name
            )
            reason = change_set.get("StatusReason", "")
            self._cloudformation.delete_change_set(StackName=self._stack, ChangeSetName=name)
            if any(words in reason for words in NOTHING_TO_DO):
                return
            raise DeploymentError(reason) from None
        self._cloudformation.execute_change_set(StackName=self._stack, ChangeSetName=name)
        self._wait(f"stack_{kind.lower()}_complete")

    def _current(self) -> Any:
        """The stack, if there is one, and not merely the trace of a first try."""
        try:
            [stack] = self._cloudformation.describe_stacks(StackName=self._stack)["Stacks"]
        except ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
        return None if stack["StackStatus"] == "REVIEW_IN_PROGRESS" else stack

    def _wait(self, what: Any) -> None:
        waiter: Any = self._cloudformation.get_waiter(what)
        try:
            waiter.wait(StackName=self._stack, WaiterConfig=WAIT)
        except WaiterError as error:
            events = self._cloudformation.describe_stack_events(StackName=self._stack)
            reasons = [
                f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
                for event in events["StackEvents"]
                if event["ResourceStatus"].endswith("FAILED") and "ResourceStatusReason" in event
            ]
            raise DeploymentError("\n".join(reversed(reasons)) or str(error)) from None

    # --- The bucket

    def _make_bucket(self) -> None:
        region: Any = self._session.region_name
        where: Any = {}
        if region != "us-east-1":  # which takes no constraint, of all regions
            where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            self._s3.create_bucket(Bucket=self._bucket, **where)
        except ClientError as error:
            if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise

    def _upload(self, content: bytes, extension: str) -> str:
        """Under the name of what it holds, so that a change of it is one of the template."""
        key = f"{hashlib.sha256(content).hexdigest()}.{extension}"
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=content)
        return key

    def _delete_bucket(self) -> None:
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
            for page in pages:
                for entry in page.get("Contents", []):
                    self._s3.delete_object(Bucket=self._bucket, Key=entry["Key"])
            self._s3.delete_bucket(Bucket=self._bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchBucket":
                raise
