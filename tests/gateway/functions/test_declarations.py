"""The declarations that are read from a Chalice app."""

from typing import Any

from chalice.app import Chalice, Rate

from gateway.functions.declarations import declarations

app = Chalice(app_name="declared")
app.experimental_feature_flags.add("WEBSOCKETS")


@app.authorizer()
def check(request: Any) -> None: ...


@app.route("/open", methods=["GET", "POST"], cors=True)
def open_route() -> None: ...


@app.route("/closed", authorizer=check)
def closed_route() -> None: ...


@app.on_ws_connect(name="connect")
def connect(event: Any) -> None: ...


@app.schedule(Rate(5, unit=Rate.MINUTES))
def sweep(event: Any) -> None: ...


@app.on_sqs_message(queue="jobs", batch_size=7, maximum_batching_window_in_seconds=2)
def work(event: Any) -> None: ...


@app.lambda_function(name="publish")
def publish(event: Any, context: Any) -> None: ...


def test_functions_are_declared_by_their_names_and_triggers() -> None:
    declared = declarations(app)
    assert declared["routes"] == {"/open": {"GET": None, "POST": None}, "/closed": {"GET": "check"}}
    assert declared["websocket"] == {"$connect": "connect"}
    assert declared["schedules"] == {"sweep": "rate(5 minutes)"}
    assert declared["queues"] == {"work": {"queue": "jobs", "batchSize": 7, "batchSeconds": 2}}
    assert declared["functions"] == ["publish"]


def test_a_preflight_allows_the_methods_of_its_path() -> None:
    [headers] = declarations(app)["preflights"].values()
    assert headers["Access-Control-Allow-Methods"] == "GET,POST,OPTIONS"
    assert headers["Access-Control-Allow-Origin"] == "*"
