"""The REST API: events, responses and refusals."""

from typing import Any

import pytest

from gateway.api.rest import match_route
from tests.support.echo import Echo


def test_a_function_gets_a_proxy_event_and_returns_the_response(echo: Echo) -> None:
    response = echo.http.post("/open/a%20b?x=1&x=2", content=b"\xff\x00", headers={"X-Custom": "1"})
    assert (response.status_code, response.text) == (201, "öffen")
    assert response.headers["x-one"] == "1"
    assert response.headers.get_list("x-two") == ["a", "b"]
    assert response.headers["content-type"] == "text/plain"
    [event] = echo.events()
    assert (event["path"], event["resource"]) == ("/open/a%20b", "/open/{name}")
    assert event["multiValueQueryStringParameters"] == {"x": ["1", "2"]}
    assert event["isBase64Encoded"] is True
    assert event["requestContext"]["identity"]["sourceIp"] == "127.0.0.1"
    assert echo.http.get("/open/").status_code == 403


@pytest.mark.parametrize(
    ("token", "status", "body"),
    [
        (None, 401, {"message": "Unauthorized"}),
        ("raise", 500, {"message": None}),
        ("/elsewhere", 403, {"Message": "User is not authorized to access this resource"}),
    ],
)
def test_a_refused_request_has_api_gateways_body(
    echo: Echo, token: str | None, status: int, body: Any
) -> None:
    headers = {"Authorization": token} if token else {}
    response = echo.http.get("/closed", headers=headers)
    assert (response.status_code, response.json()) == (status, body)


def test_the_authorizers_context_reaches_the_function(echo: Echo) -> None:
    context = echo.http.get("/closed", headers={"Authorization": "/closed"}).json()
    assert (context["principalId"], context["colour"]) == ("somebody", "green")


def test_a_function_that_crashes_is_502(echo: Echo) -> None:
    response = echo.http.get("/exit")
    assert (response.status_code, response.json()) == (502, {"message": "Internal server error"})
    assert echo.http.get("/open/a").status_code == 201


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", ("/", {})),
        ("/users/a%20b", ("/users/{user}", {"user": "a%20b"})),
        ("/users/me", ("/users/me", {})),
        ("/users/me/", ("/users/me", {})),
        ("/users//", None),
        ("/users/a/b", None),
        ("/nothing", None),
    ],
)
def test_a_fixed_segment_is_preferred_to_a_parameter(path: str, route: Any) -> None:
    routes: Any = {"/": {}, "/users/{user}": {}, "/users/me": {}}
    assert match_route(routes, path) == route
