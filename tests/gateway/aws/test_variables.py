"""The variables that lead to the emulated AWS."""

import pytest

from gateway.aws.signatures import random_credentials
from gateway.aws.variables import leading_to, without_proxy


@pytest.mark.parametrize(
    ("variables", "no_proxy"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "a.example"}, "a.example,127.0.0.1"),
        ({"no_proxy": "a.example"}, "a.example,127.0.0.1"),
        ({"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}, "127.0.0.1"),
    ],
)
def test_this_machine_is_reached_without_a_proxy(variables: dict[str, str], no_proxy: str) -> None:
    assert without_proxy(variables) == {"NO_PROXY": no_proxy, "no_proxy": no_proxy}


def test_the_users_own_aws_configuration_is_not_read() -> None:
    variables = leading_to("http://127.0.0.1:1", random_credentials(), {})
    assert variables["AWS_CONFIG_FILE"] == variables["AWS_SHARED_CREDENTIALS_FILE"] == "/dev/null"
