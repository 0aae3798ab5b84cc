"""REST beside the main path: bad requests, headers, limits, failures."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients import Client, token


def test_health_needs_no_token(herald: Client) -> None:
    answer = herald.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/users/alice", 200),
        ("DELETE", "/users/nobody/connections", 204),
        ("POST", "/messages", 415),
    ],
)
def test_answers_are_safe_for_browsers(herald: Client, method: str, path: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    answer = herald.http.request(method, path, headers=headers)
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_apps_own_401_and_403_have_a_challenge(herald_with: Callable[..., Client]) -> None:
    """RFC 6750 section 3, where the app answers and not API Gateway for the authorizer."""
    herald = herald_with(HERALD_IP_DENY="10.0.0.0/8")
    lacking = herald.post({"to": {"all": True}, "data": 1}, scope="messages:send")
    assert lacking.status_code == 403
    challenge = 'Bearer error="insufficient_scope", scope="messages:broadcast"'
    assert lacking.headers["www-authenticate"] == challenge
    headers = {"Authorization": f"Bearer {token(scope='')}"}
    other = herald.http.get("/users/other", headers=headers)
    assert other.headers["www-authenticate"].endswith('scope="users:read"')
    assert "www-authenticate" not in herald.post({}).headers


TO = {"users": ["nobody"]}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "the body must be an object"),
        ({}, "to is missing"),
        ({"to": TO}, "data is missing"),
        ({"to": TO, "data": 1, "colour": 1}, "colour is not a known field"),
        ({"to": TO, "data": 1, "\ud800": 1}, "? is not a known field"),
        ({"to": TO, "data": 1, "type": ""}, "type must be"),
        ({"to": TO, "data": 1, "type": "\ud800"}, "type contains a lone surrogate"),
        ({"to": TO, "data": 1, "encrypt": "no"}, "encrypt must be"),
        ({"to": TO, "data": 1, "store": None}, "store must be"),
        ({"to": [], "data": 1}, "to must be an object"),
        ({"to": {}, "data": 1}, "to must have exactly one"),
        ({"to": {**TO, "all": True}, "data": 1}, "to must have exactly one"),
        ({"to": {"all": False}, "data": 1}, "to.all must be true"),
        ({"to": {"users": []}, "data": 1}, "to.users must be a list of 1 to 100"),
        ({"to": {"users": ["a"] * 101}, "data": 1}, "to.users must be a list of 1 to 100"),
        ({"to": {"users": ["a", 2]}, "data": 1}, "to.users[1] must be a string"),
        ({"to": {"users": ["a" * 129]}, "data": 1}, "to.users[0] must be a string"),
        ({"to": {"connections": ["\ud800"]}, "data": 1}, "to.connections[0] contains a lone"),
        ({"to": {**TO, "exceptUsers": "a"}, "data": 1}, "to.exceptUsers must be a list"),
        ({"to": {**TO, "colour": 1}, "data": 1}, "to.colour is not a known field"),
        ({"messages": []}, "messages must be a list of 1 to 100"),
        ({"messages": [{}] * 101}, "messages must be a list of 1 to 100"),
        ({"messages": [{"to": TO, "data": 1}], "data": 1}, "data is not a known field"),
        ({"messages": [{"to": TO, "data": 1}, {"to": TO}]}, "messages[1].data is missing"),
        ({"messages": [{"to": {"users": [0]}, "data": 1}]}, "messages[0].to.users[0] must"),
    ],
)
def test_a_400_names_the_field(herald: Client, body: Any, detail: str) -> None:
    answer = herald.post(body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["detail"].startswith(detail)
    assert (problem["status"], problem["code"]) == (400, "bad_request")
    assert {"type", "title"} < problem.keys()


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not JSON: "),
        (b"{", "not JSON: "),
        (b'{"data": NaN}', "not JSON: NaN"),
        (b"\xff", "not JSON: the body is not UTF-8"),
        (b'{"data": "\xff"}', "not JSON: the body is not UTF-8"),
        (b'{"data": "\xed\xa0\x80"}', "not JSON: the body is not UTF-8"),
        (b'{"data": 1e999}', "a number is out of range"),
        (b'{"data": -' + b"9" * 400_000 + b"}", "a number is out of range"),
        (b'{"data": 1, "data": 2}', "data is repeated in an object"),
        (b'{"to": {"users": ["a"], "users": ["b"]}}', "users is repeated in an object"),
        (b'{"data": ' + b"[" * 100_000 + b" " * 900_000, "the JSON is nested deeper than 500"),
        (b'{"data":' * 100_000 + b" " * 200_000, "the JSON is nested deeper than 500"),
        (b'{"' + b"x" * 1_000_000 + b'": 1, "to": {}, "data": 1}', "xxx"),
    ],
    ids=range(13),
)
def test_an_unreadable_body_is_400_with_a_short_detail(
    herald: Client, body: bytes, detail: str, user: str
) -> None:
    headers = {"Authorization": f"Bearer {token(user)}", "Content-Type": "application/json"}
    answer = herald.http.post("/messages", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(detail)
    assert len(answer.content) < 1000


def test_an_unreadable_frame_is_a_bad_request_with_a_short_message(
    herald: Client, user: str
) -> None:
    socket = herald.connect(user)
    for frame, detail in (
        ("[" * 32_000, "the JSON is nested deeper than 500"),
        ('{"action": "join", "action": "send"}', "action is repeated"),
        ('{"action": "join", "data": 1e999}', "a number is out of range"),
        ('{"' + "x" * 30_000 + '": 1, "action": "heartbeat"}', "xxx"),
        ('{"action": "' + "x" * 30_000 + '"}', "action must be one of"),
    ):
        answer = socket.ask(frame)
        assert (answer["type"], answer["code"]) == ("error", "bad_request")
        assert answer["message"].startswith(detail)
        assert len(answer["message"]) < 600


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/jsonx"])
def test_another_content_type_is_415(herald: Client, content_type: str | None) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    if content_type:
        headers["Content-Type"] = content_type
    answer = herald.http.post("/messages", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["code"] == "unsupported_media_type"


def test_json_with_a_charset_is_json(herald: Client) -> None:
    headers = {
        "Authorization": f"Bearer {token()}",
        "Content-Type": "Application/JSON; charset=utf-8",
    }
    body = '{"to": {"users": ["nobody"]}, "data": "ü"}'.encode()
    assert herald.http.post("/messages", content=body, headers=headers).status_code == 200


def test_a_frame_over_128_kb_is_413(herald: Client, user: str) -> None:
    socket = herald.connect(user)
    head = len('{"type":"messages","messages":[{"id":"","type":"message","from":"alice",')
    head += len('"timestamp":1795477071772,"data":""}]}') + 26
    largest = "x" * (128 * 1024 - head)
    assert herald.post({"to": {"users": [user]}, "data": largest + "x"}).status_code == 413
    socket.assert_quiet()
    assert herald.report({"users": [user]}, largest)["delivered"] == 1
    assert socket.messages() == [largest]


def test_unknown_paths_and_methods_are_api_gateways_403(herald: Client) -> None:
    for answer in (herald.http.get("/nope"), herald.http.get("/messages")):
        assert answer.status_code == 403
        assert answer.json() == {"message": "Missing Authentication Token"}


def test_unreachable_storage_is_503(herald_with: Callable[..., Client]) -> None:
    tables = {"HERALD_CONNECTIONS_TABLE": "elsewhere", "HERALD_GROUPS_TABLE": "nowhere"}
    herald = herald_with(**tables)
    for table in tables.values():
        herald.tables.delete_table(TableName=table)
    for answer in (
        herald.http.get("/health"),
        herald.post({"to": {"all": True}, "data": 1}),
        herald.post({"to": {"connections": ["L0SM9cOFvHcCIhw="]}, "data": 1}),
    ):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["code"] == "unavailable"
    assert herald.refusal(f"?token={token()}") == 503


def test_pages_of_other_origins_may_send_requests_and_read_answers(herald: Client) -> None:
    origin = {"Origin": "https://app.example.com"}
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    preflight = herald.http.options("/messages", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    assert preflight.headers["Access-Control-Allow-Methods"] == "POST,OPTIONS"
    allowed = preflight.headers["Access-Control-Allow-Headers"].split(",")
    assert {"Authorization", "Content-Type", "Idempotency-Key"} <= set(allowed)
    answers = [
        herald.http.get("/health", headers=origin),
        herald.http.get("/keys", headers=origin),  # API Gateway's 401
        herald.http.get("/users/bob", headers={**origin, "Authorization": f"Bearer {token()}"}),
        herald.http.post(
            "/messages", content="{", headers={**origin, "Authorization": f"Bearer {token()}"}
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 200, 415]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers
    exposed = answers[0].headers["Access-Control-Expose-Headers"].split(",")
    assert set(exposed) == {"Idempotent-Replayed", "Retry-After", "x-amzn-RequestId"}


def test_an_unknown_path_has_no_preflight(herald: Client) -> None:
    assert herald.http.options("/nothing").status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/users/{}", "userId"),
        ("GET", "/users/{}/connections", "userId"),
        ("DELETE", "/users/{}/connections", "userId"),
        ("DELETE", "/users/alice/connections/{}", "connectionId"),
        ("GET", "/messages/{}", "messageId"),
    ],
)
def test_a_name_in_a_path_that_is_too_long_is_named(
    herald: Client, method: str, path: str, field: str
) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    answer = herald.http.request(method, path.format("x" * 3000), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["detail"] == (
        f"{field} must be a string of 1 to 128 characters, at most 256 bytes of UTF-8"
    )


def test_a_user_id_in_a_path_may_have_control_characters(herald: Client) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    answer = herald.http.get("/users/a%0Ab%00c", headers=headers)
    assert (answer.status_code, answer.json()["userId"]) == (200, "a\nb\0c")
