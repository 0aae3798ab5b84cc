"""Reading the environment: defaults, accepted values and error messages."""

import json
from dataclasses import fields

import pytest

from chalicelib.settings import (
    RESERVED,
    ConnectionLimitPolicy,
    LimiterFailure,
    Settings,
    SettingsError,
    variable_of,
)

SECRET = "x" * 32


def test_unset_variables_have_their_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings.jwt_secret is None
    assert settings.jwt_leeway_seconds == 5
    assert settings.connections_table == "herald-connections"
    assert settings.max_connections_per_user == 10
    assert settings.connection_limit_policy == "reject"
    assert settings.ip_allow == ()
    assert settings.message_rate == 20


def test_an_empty_value_counts_as_not_set() -> None:
    assert Settings.from_environ({"HERALD_MAX_CONNECTIONS_PER_USER": " "}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HERALD_JWT_SECRET", "x" * 31),
        ("HERALD_JWT_SECRET", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI alice"),
        ("HERALD_JWT_SECRET", '{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"}'),
        ("HERALD_JWKS_URL", "ftp://example.com"),
        ("HERALD_JWKS_URL", "http://example.com/jwks.json"),
        ("HERALD_JWKS_URL", "https://"),
        ("HERALD_JWKS_URL", "https://example.com:https/keys"),
        ("HERALD_JWKS_URL", "https://user:password@example.com"),
        ("HERALD_JWT_SECRET_ARN", "arn:aws:sns:us-east-1:000000000000:topic"),
        ("HERALD_ENCRYPTION_KEYS_ARN", "herald-dev-keys"),
        ("HERALD_JWT_LEEWAY_SECONDS", "-1"),
        ("HERALD_MAX_CONNECTIONS_PER_USER", "0"),
        ("HERALD_MAX_CONNECTIONS_PER_USER", "ten"),
        ("HERALD_CONNECTION_LIMIT_POLICY", "evict"),
        ("HERALD_IP_ALLOW", "10.0.0.0/33"),
        ("HERALD_IP_DENY", "10.0.0.1/8"),
        ("HERALD_ALLOWED_ORIGINS", "app.example.com"),
        ("HERALD_MESSAGE_RATE", "0"),
        ("HERALD_MESSAGE_RATE", "inf"),
        ("HERALD_MESSAGE_RATE", "nan"),
        ("HERALD_MESSAGE_RATE", "1e400"),
        ("HERALD_MESSAGE_RATE", "1e308"),
        ("HERALD_MESSAGE_RATE", "5e-324"),
        ("HERALD_CONNECT_RATE", "-inf"),
        ("HERALD_MESSAGE_BURST", "1" * 40),
        ("HERALD_MESSAGE_BURST", "1" * 5000),
        ("HERALD_STALE_AFTER_SECONDS", "1000000001"),
        ("HERALD_HISTORY_SECONDS", "1e3"),
        ("HERALD_FANOUT_BATCH_SECONDS", "301"),
        ("HERALD_FRAME_BYTES", "1023"),
        ("HERALD_DAILY_MESSAGE_QUOTA", "1.5"),
        ("HERALD_MANAGEMENT_ENDPOINT", "127.0.0.1:8000"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_is_allowed(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environ({variable: value})
    [line] = str(wrong.value).splitlines()
    assert line.startswith(f"{variable} holds ")
    assert "; allowed: " in line
    assert len(line) < 250


def test_every_wrong_value_is_named_and_no_secret_is_shown() -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environ({"HERALD_JWT_SECRET": "hunter2", "HERALD_MESSAGE_BURST": "many"})
    secret, burst = str(wrong.value).splitlines()
    assert secret.startswith("HERALD_JWT_SECRET holds 7 bytes; allowed: at least 32 bytes")
    assert (
        burst == "HERALD_MESSAGE_BURST holds 'many'; allowed: a whole number from 1 to 1000000000"
    )
    assert "hunter2" not in repr(wrong.value)


def test_a_local_secret_is_refused_on_lambda_and_not_shown() -> None:
    environment = {"HERALD_JWT_SECRET": "local-" + SECRET, "AWS_LAMBDA_FUNCTION_NAME": "herald"}
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environ({**environment, "HERALD_MESSAGE_BURST": "many"})
    burst, secret = str(wrong.value).splitlines()
    assert burst.startswith("HERALD_MESSAGE_BURST holds 'many'")
    assert secret.startswith("HERALD_JWT_SECRET holds a secret that begins with local-")
    assert "; allowed on Lambda: " in secret
    assert SECRET not in repr(wrong.value)


def test_a_local_secret_is_accepted_on_a_laptop() -> None:
    local = "local-" + SECRET
    assert Settings.from_environ({"HERALD_JWT_SECRET": local}).jwt_secret == local


def test_another_secret_is_accepted_on_lambda() -> None:
    environment = {"HERALD_JWT_SECRET": SECRET, "AWS_LAMBDA_FUNCTION_NAME": "herald"}
    assert Settings.from_environ(environment).jwt_secret == SECRET


def test_secrets_are_left_out_of_the_repr() -> None:
    key = {"kty": "oct", "kid": "2026-11", "k": "k" * 43}
    secrets = {"HERALD_JWT_SECRET": SECRET, "HERALD_ENCRYPTION_KEYS": json.dumps({"keys": [key]})}
    settings = Settings.from_environ(secrets)
    assert SECRET not in repr(settings)
    assert "encryption_keys=" not in repr(settings)
    assert repr(settings.encryption_keys) == "(MasterKey(kid='2026-11'),)"


def test_choices_are_parsed_into_their_enums() -> None:
    choices = {
        "HERALD_CONNECTION_LIMIT_POLICY": "evict-oldest",
        "HERALD_LIMITER_FAILURE": "open",
    }
    settings = Settings.from_environ(choices)
    assert settings.connection_limit_policy is ConnectionLimitPolicy.EVICT_OLDEST
    assert settings.limiter_failure is LimiterFailure.OPEN


def test_a_variable_takes_precedence_over_a_default_of_the_caller() -> None:
    defaults = {"stage": "dev", "users_table": "herald-dev-users"}
    settings = Settings.from_environ({"HERALD_STAGE": "prod"}, defaults)
    assert (settings.stage, settings.users_table) == ("prod", "herald-dev-users")


def test_comma_separated_values_become_tuples() -> None:
    settings = Settings.from_environ(
        {
            "HERALD_IP_ALLOW": "10.0.0.0/8, 2001:db8::/32",
            "HERALD_ALLOWED_ORIGINS": "https://App.example.com/, http://localhost:3000",
        }
    )
    assert [str(network) for network in settings.ip_allow] == ["10.0.0.0/8", "2001:db8::/32"]
    assert settings.allowed_origins == ("https://app.example.com", "http://localhost:3000")


def test_the_url_of_a_key_set_keeps_its_trailing_slash() -> None:
    url = "https://example.com/keys/"
    assert Settings.from_environ({"HERALD_JWKS_URL": url}).jwks_url == url


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "HERALD_MESAGE_RATE",
            "HERALD_MESAGE_RATE is not a setting; did you mean HERALD_MESSAGE_RATE?",
        ),
        (
            "HERALD_JWT_SECRET_ARM",
            "HERALD_JWT_SECRET_ARM is not a setting; did you mean HERALD_JWT_SECRET_ARN?",
        ),
        (
            "HERALD_X",
            "HERALD_X is not a setting; the nearest is HERALD_MAX_CONNECTIONS_PER_USER;"
            " docs/configuration.md lists all settings",
        ),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_setting(name: str, line: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environ({name: "1"})
    assert str(wrong.value) == line


def test_unknown_variables_are_named_beside_wrong_values_and_their_values_are_not_shown() -> None:
    variables = {
        "HERALD_MESSAGE_BURST": "many",
        "HERALD_JWT_SECRT": "hunter2",
        "HERALD_HISTORY_SECOND": "60",
        "HERALD_": "1",
    }
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environ(variables)
    lines = str(wrong.value).splitlines()
    assert {line.split()[0] for line in lines} == variables.keys()
    assert "hunter2" not in str(wrong.value)


def test_a_reserved_variable_is_accepted_and_changes_nothing() -> None:
    assert Settings.from_environ(dict.fromkeys(RESERVED, "1")) == Settings()
    assert not RESERVED & {variable_of(setting.name) for setting in fields(Settings)}


def test_empty_unknown_variables_and_other_programs_variables_are_ignored() -> None:
    variables = {"HERALD_MESAGE_RATE": " ", "HERALDRY": "1", "herald_x": "1", "GATEWAY_X": "1"}
    assert Settings.from_environ(variables) == Settings()


def test_master_keys_of_two_sources_are_refused() -> None:
    keys = '{"keys": [{"kty": "oct", "kid": "k", "k": "' + "c2VjcmV0" * 8 + '"}]}'
    arn = "arn:aws:secretsmanager:us-east-1:000000000000:secret:keys"
    each = {"HERALD_ENCRYPTION_KEYS": keys, "HERALD_ENCRYPTION_KEYS_ARN": arn}
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ(each)
    assert "HERALD_ENCRYPTION_KEYS and HERALD_ENCRYPTION_KEYS_ARN are both set" in str(
        refused.value
    )
    assert "c2VjcmV0" not in str(refused.value)
    for variable, value in each.items():
        Settings.from_environ({variable: value})
