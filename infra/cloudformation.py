"""What both ways to deploy stand on: a bucket of the stage's own, and stacks.

Templates go through the bucket: Herald's is longer than what CloudFormation takes by itself.
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
"""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

Template = dict[str, Any]

WAIT = {"Delay": 2, "MaxAttempts": 900}
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
NOTHING_TO_DO = ("didn't contain changes", "No updates are to be performed")
FIRST_TRY_FAILED = "ROLLBACK_COMPLETE"  # there is nothing in such a stack, and it can't be changed


class DeploymentError(Exception):
    """AWS did not do it; the text has its reasons, a line for each."""


class Bucket:
    """Where a stage keeps its code and its templates."""

    def __init__(self, session: boto3.Session, prefix: str) -> None:
        self._region: Any = session.region_name
        self._s3 = session.client("s3")
        account = session.client("sts").get_caller_identity()["Account"]
        self.name = f"{prefix}-code-{account}-{self._region}"

    def make(self) -> None:
        """Make it, unless it is there."""
        where: Any = {}
        if self._region != "us-east-1":  # which takes no constraint, of all regions
            where = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        try:
            self._s3.create_bucket(Bucket=self.name, **where)
        except ClientError as error:
            if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise

    def upload(self, content: bytes, extension: str) -> str:
        """Under the name of what it holds, so that a change of it is one of the template."""
        key = f"{hashlib.sha256(content).hexdigest()}.{extension}"
        self.write(key, content)
        return key

    def url(self, key: str) -> str:
        """Where CloudFormation finds an object."""
        return f"{self._s3.meta.endpoint_url}/{self.name}/{key}"

    def write(self, key: str, content: bytes) -> None:
        self._s3.put_object(Bucket=self.name, Key=key, Body=content)

    def read(self, key: str) -> bytes | None:
        """An object's content; None where there is none, or no bucket."""
        try:
            content: bytes = self._s3.get_object(Bucket=self.name, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("NoSuchKey", "NoSuchBucket"):
                raise
            return None
        return content

    def delete(self) -> None:
        """Delete it with all that is in it, if it is there."""
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            for page in pages:
                for entry in page.get("Contents", []):
                    self._s3.delete_object(Bucket=self.name, Key=entry["Key"])
            self._s3.delete_bucket(Bucket=self.name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchBucket":
                raise


class Stack:
    """A CloudFormation stack, in the account and the region of a session."""

    def __init__(self, session: boto3.Session, name: str) -> None:
        self._name = name
        self._cloudformation = session.client("cloudformation")

    def apply(
        self, template: Template, bucket: Bucket, parameters: Mapping[str, str]
    ) -> dict[str, str]:
        """Create the stack, or change it, through a change set; its outputs.

        Parameters that are not given stay as they were. Raises DeploymentError.
        """
        known = set(template.get("Parameters", {}))
        stack = self._current()
        if stack is not None and stack["StackStatus"] == FIRST_TRY_FAILED:
            self.delete()
            stack = None
        kind = "CREATE" if stack is None else "UPDATE"
        before = [] if stack is None else stack.get("Parameters", [])
        kept = {one["ParameterKey"] for one in before} & known - parameters.keys()
        change_set: Any = {"StackName": self._name, "ChangeSetName": f"herald-{time.time_ns()}"}
        self._cloudformation.create_change_set(
            **change_set,
            ChangeSetType=kind,
            TemplateURL=bucket.url(bucket.upload(json.dumps(template).encode(), "json")),
            Capabilities=CAPABILITIES,
            Parameters=[
                *({"ParameterKey": name, "ParameterValue": it} for name, it in parameters.items()),
                *({"ParameterKey": name, "UsePreviousValue": True} for name in sorted(kept)),
            ],
        )
        if self._changes(change_set):
            self._cloudformation.execute_change_set(**change_set)
            self._wait(f"stack_{kind.lower()}_complete")
        return self.outputs

    @property
    def exists(self) -> bool:
        """Whether there is one, with something in it."""
        stack = self._current()
        return stack is not None and stack["StackStatus"] != FIRST_TRY_FAILED

    @property
    def outputs(self) -> dict[str, str]:
        """By their names. Raises ClientError where there is no such stack."""
        [stack] = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"]
        return {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}

    def delete(self) -> None:
        """Delete it, if it is there. Raises DeploymentError."""
        self._cloudformation.delete_stack(StackName=self._name)
        self._wait("stack_delete_complete")

    def _changes(self, change_set: Any) -> bool:
        """Whether a change set has something to do, once it is made."""
        waiter = self._cloudformation.get_waiter("change_set_create_complete")
        try:
            waiter.wait(**change_set, WaiterConfig=WAIT)
        except WaiterError:
            found = self._cloudformation.describe_change_set(**change_set)
            reason = found.get("StatusReason", "")
            self._cloudformation.delete_change_set(**change_set)
            if any(words in reason for words in NOTHING_TO_DO):
                return False
            raise DeploymentError(reason) from None
        return True

    def _current(self) -> Any:
        """The stack, if there is one, and not merely the trace of a first try."""
        try:
            [stack] = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"]
        except ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
        return None if stack["StackStatus"] == "REVIEW_IN_PROGRESS" else stack

    def _wait(self, what: Any) -> None:
        waiter: Any = self._cloudformation.get_waiter(what)
        try:
            waiter.wait(StackName=self._name, WaiterConfig=WAIT)
        except WaiterError as error:
            events = self._cloudformation.describe_stack_events(StackName=self._name)
            reasons = [
                f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
                for event in events["StackEvents"]
                if event["ResourceStatus"].endswith("FAILED") and "ResourceStatusReason" in event
            ]
            raise DeploymentError("\n".join(reversed(reasons)) or str(error)) from None
