"""The IAM policies of the functions."""

import re

import pytest

from infra.policies import policy
from infra.stage import FUNCTIONS, Stage

DEV = Stage("dev")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_statement_names_its_actions_and_one_resource_of_the_stage(function: str) -> None:
    document = policy(DEV, function)
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in statement["Action"]:
            assert re.fullmatch(r"[a-z-]+:[A-Za-z]+", action)
        [resource] = [statement["Resource"]]
        assert "herald" in resource or "@connections" in resource
        assert "prod" not in resource
    resources = [statement["Resource"] for statement in document["Statement"]]
    assert len(resources) == len(set(resources))


def test_a_policy_allows_tracing_only_if_the_stage_is_traced() -> None:
    plain, traced = policy(DEV, "sweep"), policy(DEV, "sweep", traced=True)
    [more] = [one for one in traced["Statement"] if one not in plain["Statement"]]
    assert more["Action"] == ["xray:PutTelemetryRecords", "xray:PutTraceSegments"]


def test_authorizers_may_only_log_and_read_secrets() -> None:
    for function in ("rest_authorizer", "connect_authorizer"):
        actions = [one for it in policy(DEV, function)["Statement"] for one in it["Action"]]
        assert {action.partition(":")[0] for action in actions} == {"logs", "secretsmanager"}
