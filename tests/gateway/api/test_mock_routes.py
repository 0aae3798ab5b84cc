"""Routes that API Gateway answers from templates, without a function."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.api.mock_routes import MockError, MockRoute, MockRoutes, selected
from tests.support.clients import eventually
from tests.support.echo import API_GATEWAY_ID, Echo

CONTEXT = {
    "connectionId": "BFaT_fALIAMCKug=",
    "routeKey": "hello",
    "requestTimeEpoch": 1_700_000_000_000,
    "identity": {"sourceIp": "127.0.0.1"},
}


def route(
    response: str = '{"id": "$context.connectionId"}',
    request: str = '{"statusCode": 200}',
    **changes: Any,
) -> Any:
    """Return the definition of a route `hello`; `changes` are those of its integration response."""
    return {
        "Route": {"RouteKey": "hello"},
        "Integration": {"TemplateSelectionExpression": "200", "RequestTemplates": {"200": request}},
        "IntegrationResponse": {
            "IntegrationResponseKey": "/200/",
            "TemplateSelectionExpression": "200",
            "ResponseTemplates": {"200": response},
            **changes,
        },
        "RouteResponse": {"RouteResponseKey": "$default"},
    }


def answered(definition: Any, text: str = "{}", context: Any = CONTEXT) -> str | None:
    return MockRoute(definition).answer(text, context)


# --- Which route


@pytest.mark.parametrize(
    "text",
    [
        '{"action": "hello"}',
        '{"action": "hello", "ref": "1", "more": [1]}',
        '{"\\u0061ction":"hello"}',
    ],
)
def test_the_action_of_a_frame_selects_its_route(text: str) -> None:
    found = MockRoutes([route()]).of(text)
    assert found is not None
    assert found.key == "hello"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        '"hello"',
        "null",
        "[]",
        '["hello"]',
        "{}",
        '{"action": "hello "}',
        '{"action": ["hello"]}',
        '{"action": {"hello": 1}}',
        '{"action": null}',
        '{"data": {"action": "hello"}}',
        "[" * 30_000,
        "1" * 30_000,
        '{"action": "\\ud800"}',
    ],
)
def test_any_other_frame_goes_to_a_function(text: str) -> None:
    assert MockRoutes([route()]).of(text) is None


def test_without_such_routes_no_frame_is_parsed() -> None:
    assert MockRoutes(()).of('{"action": "hello"}') is None


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("200", "200"),
        ("\\$default", "$default"),
        ("$request.body.kind", "a"),
        ("$request.body.in.kind", "b"),
        ("$request.body.none", ""),
        ("$request.body.kind.none", ""),
    ],
)
def test_a_selection_expression_is_a_field_or_a_text(expression: str, found: str) -> None:
    assert selected(expression, '{"kind": "a", "in": {"kind": "b"}}') == found


# --- The answer


def test_a_response_template_knows_the_context_of_the_frame() -> None:
    template = "$context.connectionId ${context.routeKey} $context.requestTimeEpoch"
    assert answered(route(template)) == "BFaT_fALIAMCKug= hello 1700000000000"
    assert answered(route("$context.identity.sourceIp")) == "127.0.0.1"


def test_a_field_that_the_context_lacks_is_rendered_as_nothing() -> None:
    assert answered(route("<$context.requestTimeEpoch>"), context={}) == "<>"


def test_templates_are_written_in_velocitys_language() -> None:
    template = '#if($context.routeKey == "hello")yes#{else}no#end'
    assert answered(route(template)) == "yes"


def test_the_templates_name_is_selected_by_an_expression() -> None:
    definition = route(
        TemplateSelectionExpression="$request.body.language",
        ResponseTemplates={"en": "hello", "de": "hallo"},
    )
    assert answered(definition, '{"language": "de"}') == "hallo"


def test_a_frame_without_a_template_passes_through() -> None:
    definition = route(ResponseTemplates={}, IntegrationResponseKey="$default")
    definition["Integration"]["RequestTemplates"] = {}
    text = '{"action": "hello", "statusCode": 200}'
    assert answered(definition, text) == text


@pytest.mark.parametrize("key", ["/200/", "/2\\d\\d/", "$default"])
def test_the_status_of_the_request_selects_the_response(key: str) -> None:
    assert answered(route("yes", IntegrationResponseKey=key)) == "yes"


@pytest.mark.parametrize(
    "definition",
    [
        route(request='{"statusCode": 500}'),
        route(request="{}"),
        route(request="not JSON"),
        route(response="#if($context.routeKey)"),
    ],
    ids=["another status", "no status", "not JSON", "not Velocity"],
)
def test_a_route_that_does_not_fit_is_an_error(definition: Any) -> None:
    with pytest.raises(MockError):
        answered(definition)


def test_a_route_without_a_route_response_answers_nothing() -> None:
    definition = route()
    del definition["RouteResponse"]
    assert answered(definition) is None


# --- Over a socket


def test_no_function_runs_for_a_mock_route(echo_with: Callable[..., Echo]) -> None:
    echo = echo_with(mock_routes=(route(),))
    socket, connection_id = echo.connected()
    assert socket.ask({"action": "hello", "ref": "1"}) == {"id": connection_id}
    echo.run(socket, '{"action": "other"}')
    eventually(lambda: echo.events("MESSAGE"))
    [event] = echo.events("MESSAGE")
    assert event["body"] == '{"action": "other"}'
    assert event["requestContext"]["routeKey"] == "$default"


def test_a_mock_route_that_fails_sends_api_gateways_error_frame(
    echo_with: Callable[..., Echo],
) -> None:
    echo = echo_with(mock_routes=(route(request="{}"),))
    socket, connection_id = echo.connected()
    error = socket.ask({"action": "hello"})
    assert API_GATEWAY_ID.fullmatch(error.pop("requestId"))
    assert error == {"message": "Internal server error", "connectionId": connection_id}


def test_a_frame_of_a_mock_route_keeps_a_connection_from_being_idle(
    echo_with: Callable[..., Echo],
) -> None:
    echo = echo_with(idle_timeout=0.6, mock_routes=(route(),))
    idle, busy = echo.open(), echo.open()
    for _ in range(12):
        busy.ask({"action": "hello"})
        time.sleep(0.1)
    assert idle.closed_with() == (1001, "Going away")
    assert "id" in busy.ask({"action": "hello"})


def test_a_client_that_does_not_read_its_answers_delays_nobody(
    echo_with: Callable[..., Echo],
) -> None:
    """The answers that its buffer can't take are lost, and its connection stays open."""
    echo = echo_with(mock_routes=(route("x" * 100_000),))
    greedy, other = echo.open(), echo.open()
    for _ in range(200):
        greedy.connection.send('{"action": "hello"}')
    other.connection.send('{"action": "hello"}')
    assert len(other.connection.recv(timeout=10)) == 100_000
    echo.run(greedy, "pass")
    eventually(lambda: echo.events("MESSAGE"))
