"""The requirements of a token, and known attacks on token verifiers (RFC 8725 section 2)."""

import json
import time
from datetime import datetime, tzinfo
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey

from chalicelib.auth.principal import Principal, Scope
from chalicelib.auth.verifier import MAX_TOKEN_BYTES, TokenVerifier
from chalicelib.errors import Forbidden, Unauthorized
from chalicelib.settings import Settings
from tests.support.jwts import CLAIMS, SECRET, by_hand, encoded, signed


def verifier(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(**{"jwt_secret": SECRET, **settings}))


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
def test_an_unsigned_token_is_refused(algorithm: str) -> None:
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
def test_a_token_of_another_algorithm_than_the_keys_is_refused(algorithm: Any) -> None:
    assert_refused(by_hand({"alg": algorithm}, CLAIMS))


def test_a_signature_of_another_algorithm_with_the_same_key_is_refused() -> None:
    assert_refused(signed(key=SECRET * 2, algorithm="HS512", headers={}), jwt_secret=SECRET * 2)


def test_a_token_without_an_algorithm_is_refused() -> None:
    assert_refused(by_hand({"typ": "JWT"}, CLAIMS))


def test_a_token_of_another_key_is_refused() -> None:
    assert_refused(signed(key="another-key-that-is-long-enough-to-be-used"))
    assert_refused(by_hand({"alg": "HS256"}, CLAIMS, key=b""))


def test_keys_and_addresses_of_keys_in_a_token_are_ignored() -> None:
    """RFC 8725 section 3.10: each token is signed with the key that it names."""
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
def test_a_kid_selects_a_key_and_nothing_else(kid: str) -> None:
    """A shared secret has no name, so any `kid` selects it."""
    header = {"alg": "HS256", "kid": kid}
    verifier().verify(by_hand(header, CLAIMS))
    for key in (b"", b"\0" * 32, kid.encode(errors="replace")):
        assert_refused(by_hand(header, CLAIMS, key))


@pytest.mark.parametrize("kid", [1, None, ["a"], {"a": 1}, True])
def test_a_kid_of_the_wrong_type_is_refused(kid: Any) -> None:
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
def test_a_token_with_another_purpose_or_an_extension_is_refused(header: dict[str, Any]) -> None:
    assert_refused(by_hand({"alg": "HS256", **header}, CLAIMS))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_a_jwt_and_an_access_token_are_accepted(typ: str) -> None:
    verifier().verify(by_hand({"alg": "HS256", "typ": typ}, CLAIMS))
    verifier().verify(by_hand({"alg": "HS256", "typ": typ, "x5t": "a", "nonce": "b"}, CLAIMS))


# --- The text of a token


@pytest.mark.parametrize("end", [1, 10, 43, 44, 60, 100, -43, -2, -1])
def test_a_truncated_token_is_refused(end: int) -> None:
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
def test_a_malformed_token_is_refused(token: str) -> None:
    assert_refused(token)


def test_a_token_with_any_character_changed_or_added_is_refused() -> None:
    """No padding, no white space, no other alphabet, and no bits that aren't there."""
    token = signed()
    for other in (
        token + "=", token + "A", token + "\n", " " + token, token.replace(".", "..", 1),
        token + ".", token[:-1] + chr(ord(token[-1]) ^ 1),
    ):  # fmt: skip
        assert_refused(other)


def test_an_oversized_token_is_refused() -> None:
    assert_refused("A" * (MAX_TOKEN_BYTES + 1))
    assert_refused(signed(pad="x" * MAX_TOKEN_BYTES))


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
        {"sub": "\N{PARTY POPPER}" * 65},
        {"tenant": "\N{PARTY POPPER}" * 65},
        {"groups": ["ü" * 127 + "€"]},
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
def test_claims_of_the_wrong_type_are_refused(claims: dict[str, Any]) -> None:
    assert_refused(by_hand({"alg": "HS256"}, {**CLAIMS, **claims}))


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -3600), ("nbf", 3600), ("iat", 3600)])
def test_a_token_of_another_time_is_refused(claim: str, seconds: int) -> None:
    assert_refused(by_hand({"alg": "HS256"}, {**CLAIMS, claim: int(time.time()) + seconds}))


@pytest.mark.parametrize("claim", ["sub", "exp"])
def test_a_token_without_a_required_claim_is_refused(claim: str) -> None:
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
def test_a_token_with_duplicate_claims_is_refused(payload: bytes) -> None:
    assert_refused(by_hand({"alg": "HS256"}, payload))
    assert_refused(by_hand(b'{"alg": "HS256", "alg": "none"}', CLAIMS))


@pytest.mark.parametrize(
    "look_alike", ["аlice", "alice\u200b", "Alice", "alice ", "ａlice", "a\u0300"]
)
def test_look_alikes_are_other_users(look_alike: str) -> None:
    """Names are compared by code point (RFC 7519 section 7.3), without normalization."""
    principal = verifier().verify(signed(sub=look_alike))
    assert principal.user_id == look_alike
    assert principal.key != verifier().verify(signed()).key


@pytest.mark.parametrize("space", ["\u2003", "\u00a0", "\t", "\n", "\x1f", ",", "\u200b"])
def test_only_spaces_separate_scopes(space: str) -> None:
    principal = verifier().verify(signed(scope=f"ws:connect{space}messages:broadcast"))
    assert Principal.from_context(principal.to_context()) == principal
    for scope in Scope:
        with pytest.raises(Forbidden):
            principal.require(scope)


def test_a_look_alike_of_a_scope_is_not_that_scope() -> None:
    for scope in ("WS:CONNECT", "ws:connect:x", "ws:connec", "*", "ws:*", "wѕ:connect"):
        with pytest.raises(Forbidden):
            verifier().verify(signed(scope=scope)).require(Scope.WS_CONNECT)


def test_a_token_expires_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls.fromtimestamp(now + 0.9, tz)

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


def test_without_a_key_source_every_token_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR", "herald"), pytest.raises(Unauthorized):
        TokenVerifier(Settings()).verify(signed())
    assert "no key source is set" in caplog.text


def test_a_public_key_is_refused_as_a_secret() -> None:
    """Anyone could sign with a key that is public. The settings refuse it already."""
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
def test_the_text_of_a_key_is_refused_as_a_secret(secret: str) -> None:
    with pytest.raises(ValueError, match="neither a public key nor a JWK"):
        Settings.from_environ({"HERALD_JWT_SECRET": secret})
    with pytest.raises(ValueError, match="HMAC secret"):
        verifier(jwt_secret=secret)


def test_a_secret_that_is_too_short_verifies_nothing() -> None:
    """This holds even if the settings accept it; by default PyJWT would only warn."""
    secret = "x" * 31
    assert_refused(by_hand({"alg": "HS256"}, CLAIMS, secret.encode()), jwt_secret=secret)


@given(st.text() | st.lists(st.text()).map(".".join))
def test_any_text_that_is_not_a_token_is_unauthorized(text: str) -> None:
    assert_refused(text)
