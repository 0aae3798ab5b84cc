"""The stage of a function, and the names of its resources."""

import pytest

from chalicelib.stage import named, stage_defaults, stage_of


def test_a_resource_is_named_after_its_stage() -> None:
    assert named("dev", "users") == "herald-dev-users"


@pytest.mark.parametrize(
    ("environ", "stage"),
    [
        ({}, None),
        ({"HERALD_STAGE": "dev"}, None),
        ({"AWS_LAMBDA_FUNCTION_NAME": "herald-dev"}, "dev"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "herald-dev-sweep"}, "dev"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "herald-dev", "HERALD_STAGE": "prod"}, "prod"),
        ({"AWS_LAMBDA_FUNCTION_NAME": "orders"}, None),
        ({"AWS_LAMBDA_FUNCTION_NAME": "orders", "HERALD_STAGE": "prod"}, "prod"),
    ],
)
def test_a_functions_stage_follows_from_its_name_unless_it_is_set(
    environ: dict[str, str], stage: str | None
) -> None:
    assert stage_of(environ) == stage


def test_a_deployed_function_finds_its_resources_by_name() -> None:
    assert stage_defaults({}) == {}
    assert stage_defaults({"AWS_LAMBDA_FUNCTION_NAME": "herald-dev-sweep"}) == {
        "stage": "dev",
        "connections_table": "herald-dev-connections",
        "users_table": "herald-dev-users",
        "groups_table": "herald-dev-groups",
        "messages_table": "herald-dev-messages",
        "history_table": "herald-dev-history",
        "fanout_queue_url": "herald-dev-fanout",
        "jwt_secret_arn": "herald-dev-signing-key",
    }


def test_a_configured_key_source_or_queue_replaces_the_named_one() -> None:
    configured = {
        "AWS_LAMBDA_FUNCTION_NAME": "herald-dev",
        "HERALD_JWKS_URL": "https://example.com/keys",
        "HERALD_FANOUT_QUEUE_URL": "",
    }
    assert not {"jwt_secret_arn", "fanout_queue_url"} & stage_defaults(configured).keys()
