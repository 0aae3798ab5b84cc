"""CloudFormation stacks, against an emulator and against answers of AWS that it doesn't give."""

from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from infra.bucket import Bucket
from infra.cloudformation import DeploymentError, Stack
from infra.stage import Stage

TEMPLATE = {
    "Parameters": {
        "Kept": {"Type": "String", "Default": "default"},
        "Changed": {"Type": "String", "Default": "default"},
    },
    "Resources": {
        "Topic": {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": {"Ref": "Changed"}}}
    },
    "Outputs": {"Kept": {"Value": {"Ref": "Kept"}}},
}
WRONG = {
    "Resources": {
        "Queue": {
            "Type": "AWS::SQS::Queue",
            "Properties": {"RedrivePolicy": {"maxReceiveCount": 5}},
        }
    }
}


def bucket_of(session: boto3.Session) -> Bucket:
    bucket = Bucket(session, Stage("stacks"))
    bucket.create()
    return bucket


def test_a_parameter_that_is_not_given_keeps_its_value(session: boto3.Session) -> None:
    stack, bucket = Stack(session, "herald-parameters"), bucket_of(session)
    assert not stack.exists()
    assert stack.apply(TEMPLATE, bucket, {"Kept": "one", "Changed": "one"}) == {"Kept": "one"}
    assert stack.exists()
    assert stack.apply(TEMPLATE, bucket, {"Changed": "two"}) == {"Kept": "one"}
    described = session.client("cloudformation").describe_stacks(StackName="herald-parameters")
    parameters = described["Stacks"][0]["Parameters"]
    assert {one["ParameterKey"]: one["ParameterValue"] for one in parameters} == {
        "Kept": "one",
        "Changed": "two",
    }
    stack.delete()
    assert not stack.exists()


def test_no_template_stays_in_the_bucket(session: boto3.Session) -> None:
    """A template has the variables of the functions, which may be secrets."""
    stack, bucket = Stack(session, "herald-tidy"), bucket_of(session)
    earlier = bucket.upload(b'{"HERALD_ENCRYPTION_KEYS": "a secret"}', "json")
    code = bucket.upload(b"code", "zip")
    bucket.write("deployed.json", b"{}")
    stack.apply(TEMPLATE, bucket, {})
    with pytest.raises(DeploymentError):
        stack.apply(WRONG, bucket, {})
    objects = session.client("s3").list_objects_v2(Bucket=bucket.name)["Contents"]
    left = {one["Key"] for one in objects}
    assert {code, "deployed.json"} <= left
    assert earlier not in left
    assert {key for key in left if key.endswith(".json")} == {"deployed.json"}
    stack.delete()


def test_a_stack_whose_creation_failed_is_created_again(session: boto3.Session) -> None:
    stack, bucket = Stack(session, "herald-failed"), bucket_of(session)
    with pytest.raises(DeploymentError, match=r"Queue: .*RedrivePolicy"):
        stack.apply(WRONG, bucket, {})
    assert not stack.exists()
    assert stack.apply(TEMPLATE, bucket, {})["Kept"] == "default"
    stack.delete()


class StubbedSession:
    """A session whose clients give prepared answers."""

    def __init__(self) -> None:
        region, keys = "us-east-1", {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        self.clients = {
            service: boto3.client(service, region_name=region, **keys)  # type: ignore[call-overload]
            for service in ("cloudformation", "s3", "sts")
        }
        self.region_name = region
        self.answers = Stubber(self.clients["cloudformation"])
        self.answers.activate()

    def client(self, service: str) -> Any:
        return self.clients[service]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("The submitted information didn't contain changes. Submit different", True),
        ("No updates are to be performed.", True),
        ("Requires capabilities : [CAPABILITY_NAMED_IAM]", False),
    ],
)
def test_a_change_set_without_changes_is_a_success_and_any_other_failure_is_not(
    reason: str, changes: bool, aws: None
) -> None:
    stubbed: Any = StubbedSession()
    stack, bucket = Stack(stubbed, "herald-dev"), bucket_of(stubbed)
    described = {
        "Stacks": [
            {
                "StackName": "herald-dev",
                "CreationTime": "2026-11-28",
                "StackStatus": "UPDATE_COMPLETE",
                "Outputs": [{"OutputKey": "Kept", "OutputValue": "one"}],
            }
        ]
    }
    failed = {"Status": "FAILED", "StatusReason": reason}
    change_set = {"StackName": "herald-dev", "ChangeSetName": ANY}
    answers = stubbed.answers
    answers.add_response("describe_stacks", described, {"StackName": "herald-dev"})
    answers.add_response("create_change_set", {})
    answers.add_response("describe_change_set", failed, change_set)
    answers.add_response("describe_change_set", failed, change_set)
    answers.add_response("delete_change_set", {}, change_set)
    if changes:
        answers.add_response("describe_stacks", described, {"StackName": "herald-dev"})
        assert stack.apply(TEMPLATE, bucket, {}) == {"Kept": "one"}
    else:
        with pytest.raises(DeploymentError, match="Requires capabilities"):
            stack.apply(TEMPLATE, bucket, {})
    answers.assert_no_pending_responses()
