"""CloudFormation stacks, created and changed through change sets.

Templates go through the stage's bucket, because Herald's is longer than what CloudFormation accepts
in a request: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from infra.bucket import Bucket

Template = dict[str, Any]

WAITER_CONFIG = {"Delay": 2, "MaxAttempts": 900}
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
NO_CHANGES = ("didn't contain changes", "No updates are to be performed")
CREATION_FAILED = "ROLLBACK_COMPLETE"  # such a stack is empty, and can only be deleted
NEVER_EXECUTED = "REVIEW_IN_PROGRESS"  # such a stack has a change set and nothing else


class DeploymentError(Exception):
    """A deployment failed or was refused; the text gives the reasons, one per line."""


class Stack:
    """A CloudFormation stack, in the account and the region of a session."""

    def __init__(self, session: boto3.Session, name: str) -> None:
        self._name = name
        self._cloudformation = session.client("cloudformation")

    def apply(
        self, template: Template, bucket: Bucket, parameters: Mapping[str, str]
    ) -> dict[str, str]:
        """Create or update the stack. Parameters that aren't given keep their values.

        Returns the stack's outputs. Raises DeploymentError.
        """
        stack = self._describe()
        if stack is not None and stack["StackStatus"] == CREATION_FAILED:
            self.delete()
            stack = None
        kind = "CREATE" if stack is None else "UPDATE"
        previous = set() if stack is None else _parameter_names(stack)
        kept = (previous & template.get("Parameters", {}).keys()) - parameters.keys()
        change_set: Any = {"StackName": self._name, "ChangeSetName": f"herald-{time.time_ns()}"}
        self._cloudformation.create_change_set(
            **change_set,
            ChangeSetType=kind,
            TemplateURL=bucket.url(bucket.upload(json.dumps(template).encode(), "json")),
            Capabilities=CAPABILITIES,
            Parameters=[
                *(
                    {"ParameterKey": name, "ParameterValue": value}
                    for name, value in parameters.items()
                ),
                *({"ParameterKey": name, "UsePreviousValue": True} for name in sorted(kept)),
            ],
        )
        try:
            changes = self._has_changes(change_set)
        finally:
            bucket.delete_templates()  # CloudFormation has its own copy by now
        if changes:
            self._cloudformation.execute_change_set(**change_set)
            self._wait(f"stack_{kind.lower()}_complete")
        return self.outputs()

    def exists(self) -> bool:
        """Return whether the stack exists and was created successfully."""
        stack = self._describe()
        return stack is not None and stack["StackStatus"] != CREATION_FAILED

    def outputs(self) -> dict[str, str]:
        """Return the stack's outputs by name. Raises ClientError if the stack doesn't exist."""
        [stack] = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    def delete(self) -> None:
        """Delete the stack if it exists. Raises DeploymentError."""
        self._cloudformation.delete_stack(StackName=self._name)
        self._wait("stack_delete_complete")

    def _has_changes(self, change_set: Any) -> bool:
        """Wait until a change set has been created, and return whether it changes anything.

        Raises DeploymentError if CloudFormation refuses the change set.
        """
        waiter = self._cloudformation.get_waiter("change_set_create_complete")
        try:
            waiter.wait(**change_set, WaiterConfig=WAITER_CONFIG)
        except WaiterError:
            described = self._cloudformation.describe_change_set(**change_set)
            reason = described.get("StatusReason", "")
            self._cloudformation.delete_change_set(**change_set)
            if any(words in reason for words in NO_CHANGES):
                return False
            raise DeploymentError(reason) from None
        return True

    def _describe(self) -> Any:
        """Return the stack's description, or None if nothing was ever executed for it."""
        try:
            [stack] = self._cloudformation.describe_stacks(StackName=self._name)["Stacks"]
        except ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
        return None if stack["StackStatus"] == NEVER_EXECUTED else stack

    def _wait(self, waiter_name: Any) -> None:
        """Wait for the stack. Raises DeploymentError with the reasons of what failed."""
        waiter: Any = self._cloudformation.get_waiter(waiter_name)
        try:
            waiter.wait(StackName=self._name, WaiterConfig=WAITER_CONFIG)
        except WaiterError as error:
            events = self._cloudformation.describe_stack_events(StackName=self._name)
            reasons = [
                f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
                for event in events["StackEvents"]
                if event["ResourceStatus"].endswith("FAILED") and "ResourceStatusReason" in event
            ]
            raise DeploymentError("\n".join(reversed(reasons)) or str(error)) from None


def _parameter_names(stack: Any) -> set[str]:
    return {parameter["ParameterKey"] for parameter in stack.get("Parameters", [])}
