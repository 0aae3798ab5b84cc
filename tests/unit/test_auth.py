import base64
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.auth import TokenVerifier, handshake_token
from chalicelib.errors import Forbidden, TokenExpired, Unauthorized
from chalicelib.principal import Principal, Scope, user_key
from chalicelib.settings import Settings

SECRET = "the-key-of-these-tests-has-32-bytes-and-more"


def verifier(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(jwt_secret=SECRET, **settings))


def signed(key: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    payload = {"sub": "alice", "exp": int(time.time()) + 60, **claims}
    return jwt.encode(payload, key, algorithm=algorithm)


def raw(header: Any, payload: Any) -> str:
    parts = [json.dumps(part) if not isinstance(part, str) else part for part in (header, payload)]
    encoded = [base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2ln"])


def test_the_claims_become_a_principal() -> None:
    expires = int(time.time()) + 60
    token = signed(exp=expires, scope="ws:connect users:read", tenant="acme", groups=["a", "b*"])
    assert verifier().verify(token) == Principal(
        user_id="alice",
        expires_at=expires,
        leeway=5,
        tenant="acme",
        scopes=frozenset({"ws:connect", "users:read"}),
        groups=("a", "b*"),
    )
    assert verifier().verify(signed()).scopes == frozenset()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b",
        "é.é.é",
        raw({"alg": "none", "typ": "JWT"}, {"sub": "alice", "exp": 9999999999}),
        raw({"alg": "HS256"}, {"sub": "alice", "exp": 9999999999}),
        signed(key="another-key-that-is-long-enough-to-be-used"),
        signed(key=SECRET + SECRET, algorithm="HS512"),
        signed(algorithm="HS512", key=SECRET * 2),
        signed()[:-2],
        "x" * 8193,
    ],
)
def test_tokens_that_prove_nothing(token: str) -> None:
    with pytest.raises(Unauthorized):
        verifier().verify(token)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 129},
        {"sub": "\ud800"},
        {"exp": None},
        {"exp": "9999999999"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": int(time.time()) - 3600},
        {"nbf": int(time.time()) + 3600},
        {"scope": ["ws:connect"]},
        {"tenant": ""},
        {"tenant": 1},
        {"groups": "a"},
        {"groups": [1]},
    ],
    ids=str,
)
def test_claims_of_the_wrong_kind(claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized):
        verifier().verify(signed(**claims))


def test_deeply_nested_claims_are_refused_not_a_crash() -> None:
    payload = "[" * 5000
    signing = raw({"alg": "HS256"}, payload).rpartition(".")[0]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        signing.encode(), SECRET.encode()
    )
    token = f"{signing}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    with pytest.raises(Unauthorized):
        verifier().verify(token)


def test_the_leeway_is_the_settings() -> None:
    token = signed(exp=int(time.time()) - 3)
    verifier(jwt_leeway_seconds=5).verify(token)
    with pytest.raises(Unauthorized):
        verifier(jwt_leeway_seconds=1).verify(token)


def test_issuer_and_audience_are_checked_when_set() -> None:
    verifier().verify(signed(iss="x", aud="y"))
    strict = verifier(jwt_issuer="x", jwt_audience="y")
    strict.verify(signed(iss="x", aud=["y", "z"]))
    for claims in ({}, {"iss": "x"}, {"aud": "y"}, {"iss": "z", "aud": "y"}):
        with pytest.raises(Unauthorized):
            strict.verify(signed(**claims))


def test_without_a_key_nothing_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR", "herald"), pytest.raises(Unauthorized):
        TokenVerifier(Settings()).verify(signed())
    assert "no key source is set" in caplog.text


def test_where_a_handshakes_token_is() -> None:
    query = {"token": "q"}
    subprotocols = ["herald.v1", "bearer.s"]
    assert handshake_token({"authorization": "bearer h"}, subprotocols, query) == "h"
    assert handshake_token({}, subprotocols, query) == "s"
    assert handshake_token({}, ["herald.v1"], query) == "q"
    for headers in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer "}):
        with pytest.raises(Unauthorized):
            handshake_token(headers, [], {"token": ""} if not headers else query)


names = st.text(min_size=1, max_size=20)


@given(
    st.builds(
        Principal,
        user_id=names,
        expires_at=st.integers(0, 2**40),
        tenant=st.none() | names,
        scopes=st.frozensets(st.sampled_from(list(Scope)).map(str)),
        groups=st.lists(names).map(tuple),
    )
)
def test_a_principal_survives_the_authorizers_context(principal: Principal) -> None:
    context = principal.to_context()
    assert all(isinstance(value, str) for value in context.values())
    seen = {**context, "principalId": "x", "integrationLatency": 1}
    assert Principal.from_context(json.loads(json.dumps(seen))) == principal


@given(st.tuples(st.none() | names, names), st.tuples(st.none() | names, names))
def test_two_users_never_share_a_key(
    one: tuple[str | None, str], other: tuple[str | None, str]
) -> None:
    assert (user_key(*one) == user_key(*other)) == (one == other)


def test_scopes_and_expiry() -> None:
    principal = Principal("alice", expires_at=100, scopes=frozenset({"ws:connect"}))
    principal.require(Scope.WS_CONNECT)
    with pytest.raises(Forbidden, match="users:read"):
        principal.require(Scope.USERS_READ)
    principal.require_unexpired(99.9)
    with pytest.raises(TokenExpired):
        principal.require_unexpired(100)
