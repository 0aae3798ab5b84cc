import json
from typing import Any

import pytest
from chalice.app import Chalice, Response

from chalicelib.errors import (
    ANSWERS,
    BadRequest,
    HeraldError,
    InsufficientScope,
    InternalError,
    Unauthorized,
    Unavailable,
)
from chalicelib.protocol.reports import Interrupted, Reply, Report
from chalicelib.rest.requests import RestRequest
from chalicelib.rest.responses import SAFE_HEADERS, Headers, View, answering, problem, success
from tests.support.schemas import check_answer
from tests.unit.rest.chalice_requests import CALLER, CONTEXT, chalice_request, rules, uncharged

WEBSOCKET_ONLY = {"too_many_connections", "connection_gone"}
ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def body_of(response: Response) -> Any:
    return json.loads(response.body)


def headers_of(response: Response) -> Headers:
    headers: Headers = response.headers
    assert SAFE_HEADERS.items() <= headers.items()
    return headers


def answer(view: View, **path: str) -> Response:
    app = Chalice("test")
    app.current_request = chalice_request()
    app.lambda_context = CONTEXT
    return answering(app, rules(), uncharged)(view)(**path)


def test_a_view_gets_the_request_and_the_parts_of_the_path() -> None:
    def view(request: RestRequest, user_id: str) -> dict[str, object]:
        return {"caller": request.caller().user_id, "user": user_id}

    response = answer(view, user_id="bob")
    assert response.status_code == 200
    assert body_of(response) == {"caller": CALLER.user_id, "user": "bob"}


def test_a_views_name_stays_since_policies_refer_to_it() -> None:
    def get_user(request: RestRequest) -> None: ...

    assert answering(Chalice("test"), rules(), uncharged)(get_user).__name__ == "get_user"


def test_an_error_of_a_view_is_answered_with_its_problem() -> None:
    def view(request: RestRequest) -> None:
        raise BadRequest("to is missing")

    response = answer(view)
    assert (response.status_code, body_of(response)["detail"]) == (400, "to is missing")


def test_a_bug_is_logged_and_hidden_from_the_client(caplog: pytest.LogCaptureFixture) -> None:
    def view(request: RestRequest) -> None:
        raise RuntimeError("secret")

    response = answer(view)
    assert response.status_code == 500
    assert body_of(response)["detail"] == "Internal error. It has been logged."
    [record] = caplog.records
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


def test_none_is_204_without_a_body() -> None:
    response = success(None)
    assert (response.status_code, response.body) == (204, "")
    assert "Content-Type" not in headers_of(response)


def test_a_value_is_200_as_json() -> None:
    response = success({"name": "ü"})
    assert (response.status_code, response.body) == (200, '{"name":"ü"}')
    assert headers_of(response)["Content-Type"] == "application/json"


def test_a_reply_has_its_own_status_and_says_whether_it_is_replayed() -> None:
    first, again = (success(Reply(b"{}", 202, replayed)) for replayed in (False, True))
    assert (first.status_code, again.status_code) == (202, 202)
    assert "Idempotent-Replayed" not in headers_of(first)
    assert headers_of(again)["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("code", sorted(ANSWERS.keys() - WEBSOCKET_ONLY))
def test_every_error_is_a_documented_problem(code: str) -> None:
    error: HeraldError = type("Error", (HeraldError,), {"code": code})("wrong")
    response = problem(error)
    body = body_of(response)
    check_answer("Problem", body)
    assert headers_of(response)["Content-Type"] == "application/problem+json"
    assert (body["code"], body["status"]) == (code, response.status_code)


def test_a_problem_says_when_to_try_again_in_whole_seconds() -> None:
    assert headers_of(problem(Unavailable("busy", retry_after=1.2)))["Retry-After"] == "2"
    assert headers_of(problem(Unavailable("busy", retry_after=0.0)))["Retry-After"] == "1"
    assert "Retry-After" not in headers_of(problem(Unavailable("busy")))


def test_refused_tokens_are_challenged() -> None:
    """RFC 6750 section 3."""
    invalid = headers_of(problem(Unauthorized("the token is not valid")))
    assert invalid["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    lacking = headers_of(problem(InsufficientScope("users:read")))
    challenge = 'Bearer error="insufficient_scope", scope="users:read"'
    assert lacking["WWW-Authenticate"] == challenge
    assert "WWW-Authenticate" not in headers_of(problem(InternalError()))


def test_an_interrupted_request_reports_what_was_sent() -> None:
    error = Interrupted(Unavailable("storage is unreachable"), [Report(ID)])
    assert body_of(problem(error))["messages"] == [Report(ID).to_dict()]
