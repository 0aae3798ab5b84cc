"""What a token must be, and the known attacks on those who verify tokens (RFC 8725 section 2).

Tokens are made by joserfc or by hand, so that they don't depend on the library that verifies them.
"""

import base64
import hashlib
import hmac
import json
import time
from datetime import datetime, tzinfo
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OctKey, RSAKey

from chalicelib.auth.authorizers import allow
from chalicelib.auth.bearer import handshake_token
from chalicelib.auth.principal import Principal, Scope, user_key
from chalicelib.auth.verifier import MAX_TOKEN_BYTES, TokenVerifier
from chalicelib.errors import Forbidden, TokenExpired, Unauthorized
from chalicelib.settings import Settings
from tests.support import key_server

SECRET = "the-key-of-these-tests-has-32-bytes-and-more"
ALLOWED_RESULT = 8192
"""https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html"""


def verifier(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(**{"jwt_secret": SECRET, **settings}))


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    payload = {"sub": "alice", "exp": int(time.time()) + 60, **claims}
    key = OctKey.import_key(key) if isinstance(key, str) else key
    return key_server.signed(key, algorithm, headers or {}, payload)


def encoded(part: Any) -> str:
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def by_hand(header: Any, payload: Any, key: bytes = SECRET.encode()) -> str:
    """A token signed with HS256, whatever it says of itself."""
    signing = f"{encoded(header)}.{encoded(payload)}"
    return f"{signing}.{encoded(hmac.new(key, signing.encode(), hashlib.sha256).digest())}"


CLAIMS = {"sub": "alice", "exp": 9_999_999_999}


def assert_refused(token: str, **settings: Any) -> None:
    with pytest.raises(Unauthorized) as refused:
        verifier(**settings).verify(token)
    assert len(token) < 20 or token[:20] not in refused.value.detail


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


# --- Algorithms and keys (RFC 8725 sections 2.1, 2.2, 3.1, 3.2)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_unsigned(algorithm: str) -> None:
    for signature in ("", encoded(b"sig")):
        assert_refused(f"{encoded({'alg': algorithm})}.{encoded(CLAIMS)}.{signature}")


@pytest.mark.parametrize(
    "algorithm",
    [
        "HS384",
        "HS512",
        "RS256",
        "ES256",
        "EdDSA",
        "hs256",
        "HS256 ",
        "HЅ256",
        "dir",
        None,
        1,
        ["HS256"],
    ],
)
def test_another_algorithm_than_the_keys(algorithm: Any) -> None:
    assert_refused(by_hand({"alg": algorithm}, CLAIMS))


def test_really_signed_by_another_algorithm_of_the_same_key() -> None:
    assert_refused(signed(key=SECRET * 2, algorithm="HS512", headers={}), jwt_secret=SECRET * 2)


def test_without_an_algorithm() -> None:
    assert_refused(by_hand({"typ": "JWT"}, CLAIMS))


def test_of_another_key() -> None:
    assert_refused(signed(key="another-key-that-is-long-enough-to-be-used"))
    assert_refused(by_hand({"alg": "HS256"}, CLAIMS, key=b""))


def test_keys_and_addresses_that_a_token_brings_itself() -> None:
    """RFC 8725 section 3.10: each is signed by the key that it names, and by none of ours."""
    theirs = RSAKey.generate_key(2048)
    public = theirs.as_dict(private=False)
    secret = "a-symmetric-key-that-the-token-brings-along"
    brought = {"kty": "oct", "k": encoded(secret.encode())}
    for headers in (
        {"jwk": public},
        {"jku": "http://127.0.0.1:9/jwks.json"},
        {"x5u": "http://127.0.0.1:9/cert.pem"},
        {"x5c": ["MIIB"]},
        {"jwk": public, "kid": "../../../dev/null"},
    ):
        assert_refused(signed(theirs, "RS256", headers))
    assert_refused(signed(secret, "HS256", {"jwk": brought}))


@pytest.mark.parametrize(
    "kid",
    ["../../dev/null", "/dev/null", "' OR 1=1 --", "http://127.0.0.1:9/", "a\x00b", "\ud800", ""],
)
def test_a_kid_finds_nothing_but_a_key(kid: str) -> None:
    """And where there is one secret, it is as good as none."""
    header = {"alg": "HS256", "kid": kid}
    verifier().verify(by_hand(header, CLAIMS))
    for key in (b"", b"\0" * 32, kid.encode(errors="replace")):
        assert_refused(by_hand(header, CLAIMS, key))


@pytest.mark.parametrize("kid", [1, None, ["a"], {"a": 1}, True])
def test_a_kid_of_the_wrong_type(kid: Any) -> None:
    assert_refused(by_hand({"alg": "HS256", "kid": kid}, CLAIMS))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"b64": False},
        {"b64": True},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": "secevent+jwt"},
        {"typ": 1},
    ],
    ids=str,
)
def test_what_the_token_is_not_for_or_depends_on(header: dict[str, Any]) -> None:
    assert_refused(by_hand({"alg": "HS256", **header}, CLAIMS))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_the_types_of_tokens(typ: str) -> None:
    verifier().verify(by_hand({"alg": "HS256", "typ": typ}, CLAIMS))
    verifier().verify(by_hand({"alg": "HS256", "typ": typ, "x5t": "a", "nonce": "b"}, CLAIMS))


# --- The text of a token


@pytest.mark.parametrize("end", [1, 10, 43, 44, 60, 100, -43, -2, -1])
def test_truncated(end: int) -> None:
    assert_refused(signed()[:end])


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "é.é.é",
        "\ud800.b.c",
        "a.b.c.d.e",  # as a JWE has
        f"{encoded([])}.{encoded(CLAIMS)}.c2ln",
        f"{encoded('HS256')}.{encoded(CLAIMS)}.c2ln",
        f"{encoded(b'{')}.{encoded(CLAIMS)}.c2ln",
        by_hand({"alg": "HS256"}, "no object"),
        by_hand({"alg": "HS256"}, [CLAIMS]),
        by_hand({"alg": "HS256"}, b"\xff{}"),
        by_hand({"alg": "HS256"}, b"{"),
        by_hand({"alg": "HS256"}, b"[" * 5000),
        by_hand(b"[" * 5000, CLAIMS),
    ],
    ids=range(17),
)
def test_malformed(token: str) -> None:
    assert_refused(token)


def test_each_character_is_as_it_was_signed() -> None:
    """No padding, no white space, no other alphabet, and no bits that aren't there."""
    token = signed()
    for other in (
        token + "=", token + "A", token + "\n", " " + token, token.replace(".", "..", 1),
        token + ".", token[:-1] + chr(ord(token[-1]) ^ 1),
    ):  # fmt: skip
        assert_refused(other)


def test_oversized_before_anything_is_decoded() -> None:
    assert_refused("A" * (MAX_TOKEN_BYTES + 1))
    assert_refused(signed(pad="x" * MAX_TOKEN_BYTES))


@pytest.mark.parametrize(
    "group", ["群" * 127, "a" * 127, "a", '"', "\\", "\u0001", "é\n"], ids=ascii
)
def test_what_is_accepted_fits_into_an_authorizers_result(group: str) -> None:
    """Of 8 KB; beyond that API Gateway answers 500."""
    arn = "arn:aws:execute-api:ap-southeast-2:123456789012:abcdef1234/production/$connect"
    accepted = 0
    for count in range(1, 3000):
        claims = {**CLAIMS, "sub": "s" * 128, "groups": [group] * count}
        token = by_hand({"alg": "HS256"}, json.dumps(claims, ensure_ascii=False).encode())
        try:
            result = allow(arn, verifier().verify(token))
        except Unauthorized:
            break
        accepted = len(json.dumps(result, ensure_ascii=False).encode())
        assert accepted < ALLOWED_RESULT
    assert accepted > ALLOWED_RESULT / 2


# --- Claims (RFC 7519 section 4; RFC 8725 sections 3.8, 3.9)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": ["alice"]},
        {"sub": {"$ne": ""}},
        {"sub": "x" * 129},
        {"sub": "\ud800"},
        {"exp": None},
        {"exp": "9999999999"},
        {"exp": True},
        {"exp": [9999999999]},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**12},
        {"exp": 10**300},
        {"exp": 0},
        {"exp": -1},
        {"nbf": "0"},
        {"nbf": None},
        {"nbf": False},
        {"iat": "0"},
        {"iat": None},
        {"iat": False},
        {"iss": 1},
        {"iss": None},
        {"aud": 1},
        {"aud": None},
        {"jti": 1},
        {"aud": ["a", 1]},
        {"scope": ["ws:connect"]},
        {"scope": None},
        {"tenant": ""},
        {"tenant": 1},
        {"tenant": "\ud800"},
        {"groups": "a"},
        {"groups": [1]},
        {"groups": [""]},
        {"groups": {"a": 1}},
    ],
    ids=str,
)
def test_claims_of_the_wrong_kind(claims: dict[str, Any]) -> None:
    assert_refused(by_hand({"alg": "HS256"}, {**CLAIMS, **claims}))


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -3600), ("nbf", 3600), ("iat", 3600)])
def test_claims_of_another_time(claim: str, seconds: int) -> None:
    assert_refused(by_hand({"alg": "HS256"}, {**CLAIMS, claim: int(time.time()) + seconds}))


@pytest.mark.parametrize("claim", ["sub", "exp"])
def test_required_claims(claim: str) -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != claim}
    assert_refused(by_hand({"alg": "HS256"}, claims))


@pytest.mark.parametrize(
    "payload",
    [
        b'{"sub": "alice", "sub": "bob", "exp": 9999999999}',
        b'{"sub": "alice", "\\u0073ub": "bob", "exp": 9999999999}',
        b'{"sub": "alice", "exp": 9999999999, "tenant": "a", "tenant": null}',
        b'{"sub": "alice", "exp": 9999999999, "x": {"a": 1, "a": 2}}',
    ],
)
def test_duplicate_claims(payload: bytes) -> None:
    assert_refused(by_hand({"alg": "HS256"}, payload))
    assert_refused(by_hand(b'{"alg": "HS256", "alg": "none"}', CLAIMS))


@pytest.mark.parametrize(
    "look_alike", ["аlice", "alice\u200b", "Alice", "alice ", "ａlice", "a\u0300"]
)
def test_look_alikes_are_other_users(look_alike: str) -> None:
    """Names are compared code point by code point (RFC 7519 section 7.3), never made alike."""
    principal = verifier().verify(signed(sub=look_alike))
    assert principal.user_id == look_alike
    assert principal.key != verifier().verify(signed()).key


@pytest.mark.parametrize("space", ["\u2003", "\u00a0", "\t", "\n", "\x1f", ",", "\u200b"])
def test_scopes_are_parted_by_a_space_and_nothing_else(space: str) -> None:
    principal = verifier().verify(signed(scope=f"ws:connect{space}messages:broadcast"))
    assert Principal.from_context(principal.to_context()) == principal
    for scope in Scope:
        with pytest.raises(Forbidden):
            principal.require(scope)


def test_scopes_that_look_like_one() -> None:
    for scope in ("WS:CONNECT", "ws:connect:x", "ws:connec", "*", "ws:*", "wѕ:connect"):
        with pytest.raises(Forbidden):
            verifier().verify(signed(scope=scope)).require(Scope.WS_CONNECT)


def test_expired_by_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(now + 0.9, tz)

    monkeypatch.setattr("jwt.api_jwt.datetime", Clock)
    for leeway in (0, 5):
        strict = {"jwt_leeway_seconds": leeway}
        assert verifier(**strict).verify(signed(exp=now + 1 - leeway)).accepted_until == now + 1
        assert_refused(signed(exp=now - leeway), **strict)
        assert_refused(signed(exp=now - leeway - 1), **strict)
        verifier(**strict).verify(signed(nbf=now + leeway))
        assert_refused(signed(nbf=now + leeway + 1), **strict)
        verifier(**strict).verify(signed(iat=now + leeway))
        assert_refused(signed(iat=now + leeway + 1), **strict)


def test_issuer_and_audience_are_checked_when_set() -> None:
    verifier().verify(signed(iss="x", aud="y"))
    strict = {"jwt_issuer": "https://x/", "jwt_audience": "y"}
    verifier(**strict).verify(signed(iss="https://x/", aud=["z", "y"]))
    for claims in (
        {},
        {"iss": "https://x/"},
        {"aud": "y"},
        {"iss": "https://x", "aud": "y"},
        {"iss": "https://x/.evil", "aud": "y"},
        {"iss": ["https://x/"], "aud": "y"},
        {"iss": "https://x/", "aud": "yy"},
        {"iss": "https://x/", "aud": ["z"]},
        {"iss": "https://x/", "aud": []},
        {"iss": "https://x/", "aud": {"y": 1}},
    ):
        assert_refused(by_hand({"alg": "HS256"}, {**CLAIMS, **claims}), **strict)


# --- Keys


def test_without_a_key_nothing_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR", "herald"), pytest.raises(Unauthorized):
        TokenVerifier(Settings()).verify(signed())
    assert "no key source is set" in caplog.text


def test_a_public_key_is_no_secret() -> None:
    """HS256 by a key that everybody knows: the settings refuse it before it could verify."""
    for key in (
        rsa.generate_private_key(65537, 2048).public_key(),
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ):
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        with pytest.raises(ValueError, match="neither a public key nor a JWK"):
            Settings.from_environ({"HERALD_JWT_SECRET": pem})
        with pytest.raises(ValueError, match="should not be used"):
            verifier(jwt_secret=pem)


@pytest.mark.parametrize(
    "secret",
    [
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI alice",
        json.dumps({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"}),
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ"}]}),
    ],
    ids=["ssh", "jwk", "jwks"],
)
def test_the_text_of_a_key_is_not_a_secret(secret: str) -> None:
    with pytest.raises(ValueError, match="neither a public key nor a JWK"):
        Settings.from_environ({"HERALD_JWT_SECRET": secret})
    with pytest.raises(ValueError, match="HMAC secret"):
        verifier(jwt_secret=secret)


def test_a_secret_that_is_too_short_verifies_nothing() -> None:
    """Even where the settings let it pass; PyJWT by itself would only warn."""
    secret = "x" * 31
    assert_refused(by_hand({"alg": "HS256"}, CLAIMS, secret.encode()), jwt_secret=secret)


# --- Where a token is, and what it becomes


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


@given(st.text() | st.lists(st.text()).map(".".join))
def test_any_text_is_a_token_or_unauthorized(text: str) -> None:
    assert_refused(text)
