"""The gateway's configuration, and the secret that it falls back to."""

from pathlib import Path
from typing import Any

import pytest

from gateway.configuration import ConfigurationError, configuration, stage_environment

HOST_NAMES = "names and addresses without a port, separated by commas"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """The file with the checkout's secret."""
    return tmp_path / "jwt-secret"


def test_without_a_secret_in_the_environment_the_checkouts_is_used(secret_file: Path) -> None:
    variables = configuration({}, secret_file=secret_file).variables
    assert variables["HERALD_JWT_SECRET"] == secret_file.read_text().strip()


@pytest.mark.parametrize("secret", ["a-secret-of-the-shell", "", " "])
def test_a_secret_in_the_environment_is_used_even_if_it_is_empty(
    secret_file: Path, secret: str
) -> None:
    configured = configuration({"HERALD_JWT_SECRET": secret}, secret_file=secret_file)
    assert configured.variables["HERALD_JWT_SECRET"] == secret
    assert not secret_file.exists()


def test_a_broken_secret_is_a_configuration_error(secret_file: Path) -> None:
    secret_file.touch()
    with pytest.raises(ConfigurationError, match="Delete it"):
        configuration({}, secret_file=secret_file)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("PORT", "80.5", "a number from 0 to 65535 without a fraction"),
        ("GATEWAY_CONCURRENCY", "0", "a number from 1 to 256"),
        ("GATEWAY_IDLE_TIMEOUT_SECONDS", "soon", "a number from 0.1 to 86400"),
        ("GATEWAY_MOCK_ROUTES", "no", "true or false"),
        ("GATEWAY_ALLOWED_HOSTS", "http://a", HOST_NAMES),
        ("GATEWAY_ALLOWED_HOSTS", "laptop:8000", HOST_NAMES),
        ("GATEWAY_ALLOWED_HOSTS", "a b", HOST_NAMES),
        ("GATEWAY_ALLOWED_HOSTS", "*", HOST_NAMES),
    ],
)
def test_a_wrong_value_is_reported_with_what_is_allowed(
    variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        configuration({"HERALD_JWT_SECRET": "", variable: value})
    assert str(wrong.value) == f"{variable} holds '{value}'; allowed: {allowed}"


def test_more_hosts_can_be_allowed() -> None:
    environ = {"HERALD_JWT_SECRET": "", "GATEWAY_ALLOWED_HOSTS": "laptop.local, 10.0.0.1,fe80::1,"}
    assert configuration(environ).allowed_hosts == {"laptop.local", "10.0.0.1", "fe80::1"}
    assert configuration({"HERALD_JWT_SECRET": ""}).allowed_hosts == frozenset()


def test_a_stages_variables_override_those_of_all_stages() -> None:
    chalice: Any = {
        "environment_variables": {"A": "all", "B": "all"},
        "stages": {"dev": {"environment_variables": {"B": "dev"}}},
    }
    assert stage_environment(chalice, "dev") == {"A": "all", "B": "dev"}
    assert stage_environment(chalice, "other") == {"A": "all", "B": "all"}
