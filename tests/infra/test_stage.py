"""The names of a stage's resources, in `infra` and in the functions."""

import pytest

from chalicelib.settings import Settings
from chalicelib.stage import stage_defaults
from infra.configuration import StageConfiguration
from infra.stage import FUNCTIONS, RESOURCES, TABLES, Stage

DEV = Stage("dev")


@pytest.mark.parametrize("name", ["", "Dev", "a-b", "1a", "local", "x" * 21, "../x"])
def test_a_stage_name_that_cannot_be_part_of_other_names_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="STAGE holds"):
        Stage(name)


def test_two_stages_share_no_resource_name() -> None:
    names = [
        {properties.get("TableName") or properties["QueueName"] for properties in every}
        for every in (
            [one["Properties"] for one in StageConfiguration(Stage(name)).resources.values()]
            for name in ("dev", "prod")
        )
    ]
    assert names[0] & names[1] == set()
    assert len(names[0]) == len(RESOURCES)


def test_a_function_derives_its_resources_names_from_its_own_name() -> None:
    """The names are those that `infra` creates; no variable is needed."""
    for function in FUNCTIONS:
        lambda_only = {"AWS_LAMBDA_FUNCTION_NAME": DEV.function(function)}
        settings = Settings.from_environ(lambda_only, stage_defaults(lambda_only))
        known = {
            variable: getattr(settings, variable.removeprefix("HERALD_").lower())
            for variable in TABLES
        }
        assert known == {variable: DEV.named(table) for variable, table in TABLES.items()}
        assert settings.stage == "dev"
        assert settings.fanout_queue_name == DEV.named("FanoutQueue")
        assert settings.jwt_secret_arn == DEV.signing_key


def test_configured_names_win_over_derived_ones() -> None:
    environ = {
        "AWS_LAMBDA_FUNCTION_NAME": "herald-dev-sweep",
        "HERALD_STAGE": "blue",
        "HERALD_USERS_TABLE": "people",
        "HERALD_FANOUT_QUEUE_URL": "",
        "HERALD_JWKS_URL": "https://id.example.com/keys",
    }
    settings = Settings.from_environ(environ, stage_defaults(environ))
    assert settings.stage == "blue"
    assert settings.users_table == "people"
    assert settings.connections_table == "herald-blue-connections"
    assert settings.fanout_queue_url is None
    assert settings.jwt_secret_arn is None


@pytest.mark.parametrize("environ", [{}, {"AWS_LAMBDA_FUNCTION_NAME": "another"}])
def test_no_names_are_derived_without_a_stage(environ: dict[str, str]) -> None:
    assert stage_defaults({**environ, "HERALD_STAGE": ""}) == {}
