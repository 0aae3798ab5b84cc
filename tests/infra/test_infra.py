"""What is deployed beside the functions: names, rights, alarms."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chalicelib.settings import Settings
from chalicelib.stage import KEY_SOURCES, stage_defaults
from gateway.configuration import PROJECT
from infra.dashboard import alarms, dashboard
from infra.policies import policy
from infra.stage import FUNCTIONS, RESOURCES, TABLES, Stage
from infra.template import ACCESS_LOG, REST_ACCESS_LOG, merge_template

DEV = Stage("dev")
CONTRACT = {
    "ConnectionsOpened", "ConnectionsClosed", "ConnectionsRejected", "ActiveConnections",
    "ConnectionDuration", "MessagesAccepted", "MessagesRejected", "Deliveries", "DeliveryLatency",
    "DeliveryRetries", "FanoutDuration", "FanoutQueued", "MemoryUsed", "ColdStart",
}  # fmt: skip


@pytest.mark.parametrize("name", ["", "Dev", "a-b", "1a", "local", "x" * 21, "../x"])
def test_a_stage_has_a_name_that_can_be_part_of_others(name: str) -> None:
    with pytest.raises(ValueError, match="STAGE holds"):
        Stage(name)


def test_a_wrong_stage_is_one_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "infra", "package", "No!"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "STAGE holds 'No!'; allowed: up to 20 of a-z and 0-9, a letter first, but not local"
    ]


def deploy(*options: str, project: Path = PROJECT) -> "subprocess.CompletedProcess[str]":
    """`make deploy` of the stage qa, with no AWS in reach."""
    return subprocess.run(
        [sys.executable, "-m", "infra", "deploy", "qa", *options],
        cwd=project,
        env={**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stage_without_a_key_source_is_refused_before_anything_is_made() -> None:
    refused = deploy()
    assert (refused.returncode, refused.stdout) == (1, "")
    told = refused.stderr
    assert told.startswith("Nothing was deployed: the stage qa has no key source")
    for cure in (*KEY_SOURCES, ".chalice/config.json", "make resources STAGE=qa"):
        assert cure in told


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("HERALD_MESSAGE_RATE", "fast", "HERALD_MESSAGE_RATE holds 'fast'; allowed: a number"),
        ("HERALD_MESAGE_RATE", "5", "did you mean HERALD_MESSAGE_RATE?"),
        ("HERALD_JWT_SECRET", "local-" + "x" * 43, "HERALD_JWT_SECRET holds a secret that begins"),
    ],
)
def test_a_setting_that_functions_would_refuse_is_refused_before_anything_is_made(
    checkout: Path, variable: str, value: str, line: str
) -> None:
    path = checkout / ".chalice" / "config.json"
    plain = path.read_text()
    config = json.loads(plain)
    config["stages"]["qa"] = {"environment_variables": {variable: value}}
    path.write_text(json.dumps(config))
    try:
        refused = deploy(project=checkout)
    finally:
        path.write_text(plain)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(".chalice/config.json: ")
    assert line in refused.stderr


def test_two_stages_share_no_name() -> None:
    names = [
        {properties.get("TableName") or properties["QueueName"] for properties in every}
        for every in (
            [one["Properties"] for one in Stage(name).resources.values()]
            for name in ("dev", "prod")
        )
    ]
    assert names[0] & names[1] == set()
    assert len(names[0]) == len(RESOURCES)


def test_a_function_knows_its_resources_by_its_own_name() -> None:
    """As `infra` makes them: for each function that `chalice deploy` makes, and without a
    variable."""
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


def test_what_is_configured_wins_over_what_a_name_says() -> None:
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
def test_names_stay_local_where_no_stage_is_known(environ: dict[str, str]) -> None:
    assert stage_defaults({**environ, "HERALD_STAGE": ""}) == {}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_do_what_is_named_on_what_is_named(function: str) -> None:
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


def test_tracing_is_allowed_where_it_is_asked_for() -> None:
    plain, traced = policy(DEV, "sweep"), policy(DEV, "sweep", traced=True)
    [more] = [one for one in traced["Statement"] if one not in plain["Statement"]]
    assert more["Action"] == ["xray:PutTelemetryRecords", "xray:PutTraceSegments"]


def test_authorizers_reach_no_table() -> None:
    for function in ("rest_authorizer", "connect_authorizer"):
        actions = [one for it in policy(DEV, function)["Statement"] for one in it["Action"]]
        assert {action.partition(":")[0] for action in actions} == {"logs", "secretsmanager"}


def test_the_dashboard_shows_every_metric_that_herald_has() -> None:
    body: Any = json.loads(dashboard(DEV)["Properties"]["DashboardBody"]["Fn::Sub"])
    shown = {
        metric[1]
        for widget in body["widgets"]
        for metric in widget["properties"]["metrics"]
        if metric[0] == "Herald"
    }
    assert shown == CONTRACT
    places = [(widget["x"], widget["y"]) for widget in body["widgets"]]
    assert len(places) == len(set(places))


def test_every_alarm_has_its_section_in_the_documents() -> None:
    page = (PROJECT / "docs" / "operations.md").read_text()
    for alarm in alarms(DEV).values():
        name = alarm["Properties"]["AlarmDescription"].rpartition("#")[2]
        assert f'### <a id="{name}"></a>' in page


def test_access_logs_have_nothing_of_what_a_client_sent() -> None:
    for fields in (ACCESS_LOG, REST_ACCESS_LOG):
        assert all(re.fullmatch(r"\$context\.[A-Za-z.]+", variable) for variable in fields.values())
        assert not re.search("header|query|path(?!$)|protocol", " ".join(fields.values()))


def test_all_of_a_stage_can_be_merged_more_than_once() -> None:
    """Nothing that is built changes what it is built from."""
    assert merge_template(DEV) == merge_template(DEV)
