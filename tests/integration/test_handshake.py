"""Handshakes: the ones that get a WebSocket, and the statuses of the others."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.clients import SECRET, Client, token
from tests.support.jwts import CLAIMS, encoded


def unsigned() -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(CLAIMS)}."


BAD_TOKENS = {
    "malformed": lambda: "not-a-token",
    "unsigned": unsigned,
    "of another key": lambda: token(key="another-key-that-is-long-enough-for-it"),
    "expired": lambda: token(exp=int(time.time()) - 60),
    "not yet valid": lambda: token(nbf=int(time.time()) + 60),
    "without exp": lambda: token(exp=None),
    "without sub": lambda: token(sub=None),
    "with a sub that is too long": lambda: token("x" * 129),
}


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=list(BAD_TOKENS))
def test_a_bad_token_is_401_at_the_handshake_and_at_post(
    herald: Client, bad: Callable[[], str]
) -> None:
    assert herald.refusal(f"?token={bad()}") == 401
    assert herald.refusal(headers={"Authorization": f"Bearer {bad()}"}) == 401
    assert herald.refusal(subprotocols=["herald.v1", f"bearer.{bad()}"]) == 401
    answer = herald.http.post("/messages", json={}, headers={"Authorization": f"Bearer {bad()}"})
    assert (answer.status_code, answer.json()) == (401, {"message": "Unauthorized"})


def test_an_oversized_token_is_refused_and_nothing_hangs(herald: Client) -> None:
    for size, statuses in ((8_192, {401}), (9_000, {401}), (20_000, {414, 431})):
        bearer = "x" * size
        assert herald.refusal(f"?token={bearer}") in statuses
        assert herald.refusal(headers={"Authorization": f"Bearer {bearer}"}) in statuses
        assert herald.refusal(subprotocols=["herald.v1", f"bearer.{bearer}"]) in statuses
        headers = {"Authorization": f"Bearer {bearer}"}
        assert herald.http.post("/messages", json={}, headers=headers).status_code == 401
    many = {f"X-{number}": "x" for number in range(200)}
    assert herald.refusal(f"?token={token()}", headers=many) == 431


def test_a_handshake_or_post_without_a_token_is_401(herald: Client) -> None:
    assert herald.refusal() == 401
    assert herald.refusal(headers={"Authorization": "Basic YTpi"}) == 401
    assert herald.http.post("/messages", json={}).status_code == 401
    answer = herald.http.post("/messages", json={}, headers={"Authorization": token()})
    assert answer.status_code == 401


def test_a_handshake_without_the_scope_is_403(herald: Client) -> None:
    assert herald.refusal(f"?token={token(scope='messages:send')}") == 403


def test_the_first_place_that_holds_a_token_decides(herald: Client) -> None:
    good, bad = token(), "bad"
    authorization = {"Authorization": f"Bearer {good}"}
    herald.open(f"?token={bad}", headers=authorization, subprotocols=["herald.v1", f"bearer.{bad}"])
    herald.open(f"?token={bad}", subprotocols=["herald.v1", f"bearer.{good}"])
    herald.open(f"?token={good}")
    assert herald.refusal(f"?token={good}", headers={"Authorization": "Bearer bad"}) == 401


def test_the_subprotocol_is_echoed_and_the_token_is_not(herald: Client) -> None:
    socket = herald.open(subprotocols=["herald.v1", f"bearer.{token()}"])
    assert socket.connection.subprotocol == "herald.v1"
    assert herald.connect().connection.subprotocol is None


def test_unknown_subprotocols_are_400(herald: Client) -> None:
    assert herald.refusal(f"?token={token()}", subprotocols=["mqtt", "herald.v2"]) == 400


def test_a_connection_is_stored_as_promised(herald: Client, user: str) -> None:
    before = int(time.time() * 1000)
    herald.connect(user, tenant="t")
    [item] = herald.connections(user, "t")
    assert item["userId"] == {"S": user}
    assert item["status"] == {"S": "active"}
    assert before <= int(item["timestamp"]["N"]) <= time.time() * 1000
    assert len(item["connectionId"]["S"]) == 16
    assert int(item["expiresAt"]["N"]) > time.time() + 7200
    assert SECRET not in str(item)
    assert "eyJ" not in str(item)  # as every token begins


def test_the_limit_holds_when_all_connect_at_once(herald: Client, user: str) -> None:
    def attempt(_: int) -> int:
        try:
            herald.connect(user)
        except Exception as refused:
            return refused.response.status_code  # type: ignore[attr-defined, no-any-return]
        return 101

    with ThreadPoolExecutor(100) as threads:
        statuses = list(threads.map(attempt, range(100)))
    assert sorted(statuses) == [101] * 10 + [429] * 90
    assert herald.presence(user)["connections"] == 10
    assert herald.report({"users": [user]})["delivered"] == 10


def test_tenants_do_not_share_a_limit(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(HERALD_MAX_CONNECTIONS_PER_USER="1")
    herald.connect("a", tenant="x")
    herald.connect("a", tenant="y")
    assert herald.refusal(f"?token={token('a', tenant='x')}") == 429


def test_denied_addresses_and_foreign_origins_are_refused(
    herald_with: Callable[..., Client],
) -> None:
    herald = herald_with(
        HERALD_IP_DENY="10.0.0.0/8", HERALD_ALLOWED_ORIGINS="https://app.example.com"
    )
    bearer = {"Authorization": f"Bearer {token()}"}
    herald.open(headers=bearer)
    herald.open(headers=bearer, origin="https://app.example.com")
    assert herald.refusal(headers=bearer, origin="https://evil.example.com") == 403
    # A client can send any header, so none can tell its address.
    herald.open(headers={**bearer, "X-Forwarded-For": "10.1.2.3"})


def test_a_denied_address_gets_nothing_but_health(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(HERALD_IP_ALLOW="10.0.0.0/8")
    assert herald.refusal(f"?token={token()}") == 403
    assert herald.post({"to": {"users": ["a"]}, "data": 1}).json()["code"] == "forbidden"
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "True-Client-IP"):
        headers = {"Authorization": f"Bearer {token()}", name: "10.1.2.3"}
        assert herald.http.get("/users/alice", headers=headers).status_code == 403
        assert herald.refusal(headers=headers) == 403
    assert herald.http.get("/health").status_code == 200


def test_without_a_key_every_token_is_refused(herald_with: Callable[..., Client]) -> None:
    herald = herald_with(HERALD_JWT_SECRET=" ")
    assert herald.refusal(f"?token={token()}") == 401
    assert herald.post({}).status_code == 401


@pytest.mark.parametrize("path", ["/ws", "/ws/"])
def test_plain_http_is_answered_with_426(herald: Client, path: str) -> None:
    answer = httpx.get(f"{herald.running.http}{path}")
    assert answer.status_code == 426
    assert answer.headers["Upgrade"] == "websocket"


def test_a_slash_after_the_stage_changes_nothing(herald: Client, user: str) -> None:
    herald.open(f"/?token={token(user)}")
    assert herald.presence(user)["connections"] == 1
    assert herald.refusal("/") == 401
    assert herald.refusal(f"//?token={token(user)}") == 403
    assert herald.refusal(f"/other?token={token(user)}") == 403
