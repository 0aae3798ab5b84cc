"""Keys of an identity provider: which are used, for what, and what happens while it is down.

The provider is a real server with a JWK Set. Secrets are in `test_jwks_secrets.py`.
"""

import ssl
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from joserfc import jwt
from joserfc.jwk import KeySet

from chalicelib.auth.cached_fetch import FETCH_BURST, FetchError
from chalicelib.auth.fetch_json import MAX_BYTES, fetch_json
from chalicelib.auth.jwks import PublishedKeys, usable_keys
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.errors import Unauthorized, Unavailable
from chalicelib.settings import Settings
from tests.support import slow_server
from tests.support.jwts import CLAIMS, SECRET, by_hand, encoded
from tests.support.key_server import (
    ALGORITHMS,
    AnySignature,
    KeyPair,
    KeyServer,
    key_server,
    serialized,
)

PAIRS = {algorithm: KeyPair.new(algorithm, f"{algorithm}-1") for algorithm in ALGORITHMS}
OTHERS = {algorithm: KeyPair.new(algorithm, f"{algorithm}-2") for algorithm in ALGORITHMS}


@pytest.fixture
def provider() -> Iterator[KeyServer]:
    with key_server() as server:
        server.publish(*PAIRS.values())
        yield server


@pytest.fixture
def verifier(provider: KeyServer) -> TokenVerifier:
    return TokenVerifier(Settings(jwks_url=provider.url))


def assert_refused(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unauthorized):
        verifier.verify(token)


# --- Which key verifies what


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_published_key_verifies_its_tokens(
    provider: KeyServer, verifier: TokenVerifier, algorithm: str
) -> None:
    for _ in range(10):
        assert verifier.verify(PAIRS[algorithm].token()).user_id == "alice"
    assert provider.requests == 1
    assert_refused(verifier, PAIRS[algorithm].token(exp=1))
    assert_refused(verifier, OTHERS[algorithm].token(headers={"kid": f"{algorithm}-1"}))


def test_ed25519_and_eddsa_name_the_same_algorithm(provider: KeyServer) -> None:
    """RFC 9864: the key and the token may each use either name."""
    old = PAIRS["EdDSA"]
    new = replace(old, algorithm="Ed25519")
    for published in (old, new):
        provider.publish(published)
        verifier = TokenVerifier(Settings(jwks_url=provider.url))
        for pair in (old, new):
            assert verifier.verify(pair.token()).user_id == "alice"
            other = replace(OTHERS["EdDSA"], algorithm=pair.algorithm, kid=pair.kid)
            assert_refused(verifier, other.token())


def public_forms() -> Iterator[bytes]:
    """Yield everything about the public keys that could be mistaken for a secret."""
    yield from serialized(PAIRS.values())
    for pair in PAIRS.values():
        jwk = pair.jwk()
        yield (jwk["n"] if "n" in jwk else jwk["x"]).encode()


def test_a_public_key_verifies_nothing_as_another_kind_of_key(verifier: TokenVerifier) -> None:
    """It is neither an HS256 secret (RFC 8725 section 2.1) nor a key for another algorithm."""
    for secret in public_forms():
        for kid in (*(pair.kid for pair in PAIRS.values()), None):
            header = {"alg": "HS256", **({} if kid is None else {"kid": kid})}
            assert_refused(verifier, by_hand(header, CLAIMS, secret))
    for pair in PAIRS.values():
        for other in PAIRS.values():
            if other is not pair:
                assert_refused(verifier, pair.token(headers={"kid": other.kid}))


def test_a_secret_and_published_keys_each_verify_their_own_tokens(provider: KeyServer) -> None:
    both = TokenVerifier(Settings(jwks_url=provider.url, jwt_secret=SECRET))
    both.verify(by_hand({"alg": "HS256"}, CLAIMS))
    both.verify(PAIRS["RS256"].token())
    for secret in public_forms():
        assert_refused(both, by_hand({"alg": "HS256", "kid": "RS256-1"}, CLAIMS, secret))
    alone = TokenVerifier(Settings(jwt_secret=SECRET))
    assert_refused(alone, PAIRS["RS256"].token())


def test_a_token_without_kid_is_verified_by_the_only_key_for_its_algorithm(
    provider: KeyServer, verifier: TokenVerifier
) -> None:
    verifier.verify(PAIRS["ES256"].token(headers={}))
    assert_refused(verifier, OTHERS["ES256"].token(headers={}))
    provider.publish(*PAIRS.values(), *OTHERS.values())
    rotating = TokenVerifier(Settings(jwks_url=provider.url))
    asked = provider.requests
    for _ in range(5):
        assert_refused(rotating, PAIRS["ES256"].token(headers={}))
    assert provider.requests == asked + 1  # fetching again couldn't decide between the two keys


@pytest.mark.parametrize("attack", ["jwk", "jku", "x5u"])
def test_keys_in_a_tokens_header_are_ignored(
    provider: KeyServer, verifier: TokenVerifier, attack: str
) -> None:
    theirs = OTHERS["RS256"]
    with key_server() as evil:
        evil.publish(theirs)
        headers = {"jwk": theirs.jwk(), "jku": evil.url, "x5u": evil.url}
        for kid in ("RS256-1", "RS256-2", None):
            named = {} if kid is None else {"kid": kid}
            token = theirs.token(headers={attack: headers[attack], **named})
            assert_refused(verifier, token)
        assert evil.requests == 0
    # Beside the `kid` of a published key they change nothing.
    verifier.verify(PAIRS["RS256"].token(headers={"kid": "RS256-1", attack: headers[attack]}))


# --- Which of the published keys are used


def with_another_end(text: str) -> str:
    """Spell the same octets of base64url differently: the last character has unused bits."""
    other = text[:-1] + chr(ord(text[-1]) + 1)
    assert urlsafe_b64decode(other + "==") == urlsafe_b64decode(text + "==")
    return other


@pytest.mark.parametrize(
    "unusable",
    [
        {"kty": "oct", "k": encoded(b"s" * 32), "alg": "HS256"},
        {"kty": "oct", "k": encoded(b"s" * 32), "alg": "RS256"},
        PAIRS["RS256"].jwk(use="enc"),
        PAIRS["RS256"].jwk(key_ops=["encrypt"]),
        PAIRS["RS256"].jwk(alg="RS512"),
        PAIRS["RS256"].jwk(alg="RSA-OAEP"),
        PAIRS["RS256"].jwk(alg="HS256"),
        PAIRS["RS256"].jwk(alg=["RS256"]),
        PAIRS["RS256"].jwk(alg=None),
        PAIRS["RS256"].jwk(kty=["RSA"]),
        PAIRS["RS256"].jwk(key_ops=[]),
        PAIRS["RS256"].jwk(key_ops=1),
        PAIRS["RS256"].jwk(kid=7),
        PAIRS["RS256"].jwk(n=1),
        PAIRS["RS256"].jwk(n="!"),
        PAIRS["RS256"].jwk(n=PAIRS["RS256"].jwk()["n"] + "=="),
        PAIRS["RS256"].jwk(n=PAIRS["RS256"].jwk()["n"][:9] + "\n" + PAIRS["RS256"].jwk()["n"][9:]),
        PAIRS["EdDSA"].jwk(x=PAIRS["EdDSA"].jwk()["x"] + "!"),
        PAIRS["EdDSA"].jwk(x=with_another_end(PAIRS["EdDSA"].jwk()["x"])),
        PAIRS["ES256"].jwk(crv="P-384"),
        PAIRS["ES256"].jwk(x=PAIRS["ES256"].jwk()["y"]),
        PAIRS["EdDSA"].jwk(x="AA"),
        KeyPair("RS256", "short", rsa.generate_private_key(65537, 1024)).jwk(),
        KeyPair("ES256", "other", ec.generate_private_key(ec.SECP384R1())).jwk(),
        KeyPair("EdDSA", "other", ed448.Ed448PrivateKey.generate()).jwk(),
        {},
        "no key",
        None,
    ],
    ids=range(28),
)
def test_unusable_published_keys_are_ignored(unusable: Any) -> None:
    with pytest.raises(FetchError, match="has no key"):
        usable_keys({"keys": [unusable]})
    [used] = usable_keys({"keys": [unusable, PAIRS["ES256"].jwk()]})
    assert used.kid == "ES256-1"


def test_unknown_and_missing_parameters_of_a_key_are_accepted() -> None:
    """Providers add certificates and parameters of their own, and leave out `alg` and `use`."""
    bare = PAIRS["RS256"].jwk(x5c=["no base64"], x5t="?", crv="?", issuer="https://example.com")
    for name in ("use", "alg"):
        del bare[name]
    [used] = usable_keys({"keys": [bare], "more": 1})
    assert used.algorithms == {"RS256"}


def test_only_the_public_half_of_a_published_private_key_is_used() -> None:
    for pair in PAIRS.values():
        private = pair.key.as_dict(private=True, kid=pair.kid)
        assert "d" in private
        [used] = usable_keys({"keys": [private]})
        assert used.key == pair.private.public_key()


def test_all_keys_with_the_same_kid_are_tried(provider: KeyServer, verifier: TokenVerifier) -> None:
    """Some providers give their old and their new key the same name."""
    old, new = PAIRS["RS256"], replace(OTHERS["RS256"], kid="RS256-1")
    provider.publish(old, new)
    verifier.verify(old.token())
    verifier.verify(new.token())
    third = KeyPair.new("RS256", "RS256-1")
    assert_refused(verifier, third.token())


@pytest.mark.parametrize("key_set", [None, [], "keys", {}, {"keys": {}}, {"keys": []}], ids=str)
def test_anything_but_a_jwk_set_is_an_error(key_set: Any) -> None:
    with pytest.raises(FetchError):
        usable_keys(key_set)


# --- Fetching


def test_an_unknown_kid_makes_the_keys_be_fetched_again(
    provider: KeyServer, verifier: TokenVerifier
) -> None:
    old, new = PAIRS["RS256"], OTHERS["RS256"]
    verifier.verify(old.token())
    provider.publish(old, new)  # a rotation
    verifier.verify(new.token())
    verifier.verify(old.token())
    assert provider.requests == 2
    provider.publish(new)
    assert_refused(verifier, new.token(headers={"kid": "unknown"}))
    assert_refused(verifier, old.token())


def test_fetches_for_unknown_kids_are_rate_limited(
    provider: KeyServer, verifier: TokenVerifier
) -> None:
    for number in range(200):
        assert_refused(verifier, PAIRS["RS256"].token(headers={"kid": str(number)}))
    assert provider.requests == FETCH_BURST
    verifier.verify(PAIRS["RS256"].token())


def test_a_bad_signature_makes_no_request(provider: KeyServer, verifier: TokenVerifier) -> None:
    verifier.verify(PAIRS["RS256"].token())
    for _ in range(10):
        assert_refused(verifier, OTHERS["RS256"].token(headers={"kid": "RS256-1"}))
        assert_refused(verifier, by_hand({"alg": "HS256", "kid": "unknown"}, CLAIMS))
    assert provider.requests == 1


@pytest.mark.parametrize("kid", [7, None, ["RS256-1"], {"RS256-1": 1}, True])
def test_a_kid_of_the_wrong_type_makes_no_request(
    provider: KeyServer, verifier: TokenVerifier, kid: Any
) -> None:
    verifier.verify(PAIRS["RS256"].token())
    assert_refused(verifier, by_hand({"alg": "RS256", "kid": kid}, CLAIMS))
    assert provider.requests == 1


def break_status(provider: KeyServer) -> None:
    provider.status = 500


def break_body(provider: KeyServer) -> None:
    provider.body = b"<html>"


def break_keys(provider: KeyServer) -> None:
    provider.body = b'{"keys": []}'


def break_size(provider: KeyServer) -> None:
    provider.body = b" " * MAX_BYTES + provider.body


def break_redirect(provider: KeyServer) -> None:
    provider.status, provider.headers = 302, {"Location": provider.url}


def break_silent(provider: KeyServer) -> None:
    provider.hold.clear()


@pytest.mark.parametrize(
    "fail",
    [break_status, break_body, break_keys, break_size, break_redirect, break_silent],
)
def test_cached_keys_serve_while_the_provider_is_down(
    provider: KeyServer,
    fail: Callable[[KeyServer], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifier = TokenVerifier(Settings(), [PublishedKeys(provider.url, fetch_seconds=1.0)])
    with key_server() as other:
        fail(other)
        empty = TokenVerifier(Settings(), [PublishedKeys(other.url, fetch_seconds=1.0)])
        with pytest.raises(Unavailable):
            empty.verify(PAIRS["RS256"].token())
    verifier.verify(PAIRS["RS256"].token())
    fail(provider)
    with caplog.at_level("ERROR", "herald"):
        assert_refused(verifier, OTHERS["RS256"].token())
    assert "could not fetch the keys of HERALD_JWKS_URL" in caplog.text
    verifier.verify(PAIRS["RS256"].token())


def test_cached_keys_serve_when_the_provider_is_gone(
    verifier: TokenVerifier, provider: KeyServer
) -> None:
    verifier.verify(PAIRS["RS256"].token())
    provider.shutdown()
    provider.server_close()
    assert_refused(verifier, OTHERS["RS256"].token())
    verifier.verify(PAIRS["RS256"].token())
    with pytest.raises(Unavailable):
        TokenVerifier(Settings(jwks_url=provider.url)).verify(PAIRS["RS256"].token())


def test_the_providers_certificate_is_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with key_server(context) as provider:
        provider.publish(PAIRS["ES256"])
        stranger = TokenVerifier(Settings(jwks_url=provider.url))
        with pytest.raises(Unavailable):
            stranger.verify(PAIRS["ES256"].token())
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        TokenVerifier(Settings(jwks_url=provider.url)).verify(PAIRS["ES256"].token())


@pytest.mark.parametrize(
    ("fail", "seconds", "message"),
    [
        (break_status, 10, "the response has status 500"),
        (break_size, 10, "the response is larger than"),
        (break_redirect, 10, "the response has status 302"),
        (break_silent, 0.1, "no whole response within 0.1 s"),
    ],
)
def test_a_failed_fetch_says_why(
    provider: KeyServer, fail: Callable[[KeyServer], None], seconds: float, message: str
) -> None:
    fail(provider)
    with pytest.raises(FetchError, match=message):
        fetch_json(provider.url, seconds=seconds)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "behaviour",
    [
        slow_server.silence,
        slow_server.head_byte_by_byte,
        slow_server.body_byte_by_byte,
        slow_server.chunks_byte_by_byte,
    ],
)
def test_a_fetch_ends_however_slowly_the_answer_comes(
    behaviour: slow_server.Behaviour, scheme: str
) -> None:
    """Each byte comes in time; the whole never does."""
    with slow_server.slow_server(behaviour) as address, pytest.raises(FetchError):
        fetch_json(f"{scheme}://{address}/keys", seconds=0.3)


def test_an_answer_without_end_is_cut_off_at_its_size() -> None:
    with (
        slow_server.slow_server(slow_server.body_without_end) as address,
        pytest.raises(FetchError, match="larger than 262144 bytes"),
    ):
        fetch_json(f"http://{address}/keys", seconds=20)


def test_another_library_accepts_the_tests_keys_and_tokens(provider: KeyServer) -> None:
    published = KeySet.import_key_set(httpx.get(provider.url).json())
    for pair in PAIRS.values():
        decoded = jwt.decode(pair.token(), published, registry=AnySignature())
        assert decoded.claims["sub"] == "alice"
