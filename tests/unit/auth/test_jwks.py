"""Keys from an identity provider: which are used, for what, and what happens when it is down.

The provider is real: a server with a JWK Set.
"""

import json
import ssl
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import KeySet

from chalicelib.auth import jwks as keys
from chalicelib.auth.cached_fetch import FETCHES_AT_ONCE, FetchError
from chalicelib.auth.verifier import TokenVerifier
from chalicelib.errors import Unauthorized, Unavailable
from chalicelib.runtime import aws as sdk
from chalicelib.settings import LOCAL_SECRET, Settings
from tests.support.key_server import ALGORITHMS, AnySignature, KeyPair, KeyServer, key_server
from tests.unit.auth.test_verifier import CLAIMS, SECRET, by_hand, encoded

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
def test_a_token_of_a_published_key(
    provider: KeyServer, verifier: TokenVerifier, algorithm: str
) -> None:
    for _ in range(10):
        assert verifier.verify(PAIRS[algorithm].token()).user_id == "alice"
    assert provider.requests == 1
    assert_refused(verifier, PAIRS[algorithm].token(exp=1))
    assert_refused(verifier, OTHERS[algorithm].token(headers={"kid": f"{algorithm}-1"}))


def test_ed25519_by_its_new_name(provider: KeyServer) -> None:
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
    """Whatever of a public key somebody might take for a secret."""
    yield from public_keys()
    for pair in PAIRS.values():
        yield pair.jwk().get("n", pair.jwk().get("x")).encode()


def public_keys() -> Iterator[bytes]:
    """Each public key in each format that PyJWT recognizes."""
    for pair in PAIRS.values():
        public = pair.private.public_key()
        for form in (Encoding.PEM, Encoding.DER):
            yield public.public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
        yield public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).strip()
        yield json.dumps(pair.jwk()).encode()


def test_algorithm_confusion(verifier: TokenVerifier) -> None:
    """A public key is no secret for HS256 (RFC 8725 section 2.1), and no other kind of key."""
    for secret in public_forms():
        for kid in (*(pair.kid for pair in PAIRS.values()), None):
            header = {"alg": "HS256", **({} if kid is None else {"kid": kid})}
            assert_refused(verifier, by_hand(header, CLAIMS, secret))
    for pair in PAIRS.values():
        for other in PAIRS.values():
            if other is not pair:
                assert_refused(verifier, pair.token(headers={"kid": other.kid}))


def test_beside_a_secret_each_verifies_its_own(provider: KeyServer) -> None:
    both = TokenVerifier(Settings(jwks_url=provider.url, jwt_secret=SECRET))
    both.verify(by_hand({"alg": "HS256"}, CLAIMS))
    both.verify(PAIRS["RS256"].token())
    for secret in public_forms():
        assert_refused(both, by_hand({"alg": "HS256", "kid": "RS256-1"}, CLAIMS, secret))
    alone = TokenVerifier(Settings(jwt_secret=SECRET))
    assert_refused(alone, PAIRS["RS256"].token())


def test_a_token_without_kid_is_for_the_only_key_of_its_kind(
    provider: KeyServer, verifier: TokenVerifier
) -> None:
    verifier.verify(PAIRS["ES256"].token(headers={}))
    assert_refused(verifier, OTHERS["ES256"].token(headers={}))
    provider.publish(*PAIRS.values(), *OTHERS.values())
    rotating = TokenVerifier(Settings(jwks_url=provider.url))
    asked = provider.requests
    for _ in range(5):
        assert_refused(rotating, PAIRS["ES256"].token(headers={}))
    assert provider.requests == asked + 1  # to ask again would not tell which key is meant


@pytest.mark.parametrize("attack", ["jwk", "jku", "x5u"])
def test_what_a_header_brings_is_not_looked_at(
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
    # And beside our own key's name it changes nothing.
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
def test_what_else_is_published_is_passed_over(unusable: Any) -> None:
    with pytest.raises(FetchError, match="holds no key"):
        keys.usable_keys({"keys": [unusable]})
    [used] = keys.usable_keys({"keys": [unusable, PAIRS["ES256"].jwk()]})
    assert used.kid == "ES256-1"


def test_keys_as_providers_publish_them() -> None:
    """With certificates, without `alg` or `use`, and with what nobody knows."""
    bare = PAIRS["RS256"].jwk(x5c=["no base64"], x5t="?", crv="?", issuer="https://example.com")
    for name in ("use", "alg"):
        del bare[name]
    [used] = keys.usable_keys({"keys": [bare], "more": 1})
    assert used.algorithms == {"RS256"}


def test_of_a_published_private_key_the_public_half_is_used() -> None:
    for pair in PAIRS.values():
        private = pair.key.as_dict(private=True, kid=pair.kid)
        assert "d" in private
        [used] = keys.usable_keys({"keys": [private]})
        assert used.key == pair.private.public_key()


def test_each_key_of_a_kid_is_tried(provider: KeyServer, verifier: TokenVerifier) -> None:
    """Some providers give their old and their new key one name."""
    old, new = PAIRS["RS256"], replace(OTHERS["RS256"], kid="RS256-1")
    provider.publish(old, new)
    verifier.verify(old.token())
    verifier.verify(new.token())
    third = KeyPair.new("RS256", "RS256-1")
    assert_refused(verifier, third.token())


@pytest.mark.parametrize("key_set", [None, [], "keys", {}, {"keys": {}}, {"keys": []}], ids=str)
def test_what_is_no_key_set(key_set: Any) -> None:
    with pytest.raises(FetchError):
        keys.usable_keys(key_set)


# --- A secret in Secrets Manager


class SecretsManager:
    """Answers with `value`, as the SDK's client would."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {"SecretString": SECRET}

    def get_secret_value(self, **_: Any) -> dict[str, Any]:
        return self.value


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> SecretsManager:
    manager = SecretsManager()
    monkeypatch.setattr("chalicelib.runtime.aws.sdk_client", lambda *_: manager)
    return manager


def stored() -> TokenVerifier:
    arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:herald"
    return TokenVerifier(Settings(jwt_secret_arn=arn))


def test_a_rotated_secret_is_found(secrets: SecretsManager) -> None:
    verifier = stored()
    verifier.verify(by_hand({"alg": "HS256"}, CLAIMS))
    rotated = b"the-secret-after-its-rotation-is-another"
    assert_refused(verifier, by_hand({"alg": "HS256"}, CLAIMS, rotated))
    secrets.value = {"SecretBinary": rotated}
    verifier.verify(by_hand({"alg": "HS256"}, CLAIMS, rotated))
    assert_refused(verifier, by_hand({"alg": "HS256"}, CLAIMS))


def test_a_stored_secret_that_is_short_or_public_verifies_nothing(secrets: SecretsManager) -> None:
    for secret in (b"", b"x" * 31, *public_keys()):
        secrets.value = {"SecretBinary": secret}
        with pytest.raises(Unavailable):
            stored().verify(by_hand({"alg": "HS256"}, CLAIMS, secret))


# --- Fetching


def test_an_unknown_kid_is_asked_for(provider: KeyServer, verifier: TokenVerifier) -> None:
    old, new = PAIRS["RS256"], OTHERS["RS256"]
    verifier.verify(old.token())
    provider.publish(old, new)  # a rotation
    verifier.verify(new.token())
    verifier.verify(old.token())
    assert provider.requests == 2
    provider.publish(new)
    assert_refused(verifier, new.token(headers={"kid": "unknown"}))
    assert_refused(verifier, old.token())


def test_but_not_as_often_as_clients_like(provider: KeyServer, verifier: TokenVerifier) -> None:
    for number in range(200):
        assert_refused(verifier, PAIRS["RS256"].token(headers={"kid": str(number)}))
    assert provider.requests == FETCHES_AT_ONCE
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
    provider.body = b" " * keys.MAX_KEY_SET_BYTES + provider.body


def break_redirect(provider: KeyServer) -> None:
    provider.status, provider.headers = 302, {"Location": provider.url}


def break_silent(provider: KeyServer) -> None:
    provider.hold.clear()


@pytest.mark.parametrize(
    "fail",
    [break_status, break_body, break_keys, break_size, break_redirect, break_silent],
)
def test_while_the_provider_is_down_the_last_known_good_keys_serve(
    provider: KeyServer,
    verifier: TokenVerifier,
    fail: Callable[[KeyServer], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(keys, "FETCH_SECONDS", 0.1)
    with key_server() as other:
        fail(other)
        never = TokenVerifier(Settings(jwks_url=other.url))
        with pytest.raises(Unavailable):
            never.verify(PAIRS["RS256"].token())
    verifier.verify(PAIRS["RS256"].token())
    fail(provider)
    with caplog.at_level("ERROR", "herald"):
        assert_refused(verifier, OTHERS["RS256"].token())
    assert "could not fetch the keys of HERALD_JWKS_URL" in caplog.text
    verifier.verify(PAIRS["RS256"].token())


def test_a_provider_that_is_gone(verifier: TokenVerifier, provider: KeyServer) -> None:
    verifier.verify(PAIRS["RS256"].token())
    provider.shutdown()
    provider.server_close()
    assert_refused(verifier, OTHERS["RS256"].token())
    verifier.verify(PAIRS["RS256"].token())
    with pytest.raises(Unavailable):
        TokenVerifier(Settings(jwks_url=provider.url)).verify(PAIRS["RS256"].token())


def test_its_certificate_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
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


def test_a_stored_secret_that_is_local_verifies_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was copied from a checkout, where it lies readable."""
    secret = LOCAL_SECRET + SECRET

    class SecretsManager:
        def get_secret_value(self, **_: object) -> dict[str, str]:
            return {"SecretString": secret}

    monkeypatch.setattr(sdk, "sdk_client", lambda *_: SecretsManager())
    arn = "arn:aws:secretsmanager:us-east-1:000000000000:secret:herald"
    with pytest.raises(Unavailable):
        TokenVerifier(Settings(jwt_secret_arn=arn)).verify(
            by_hand({"alg": "HS256"}, CLAIMS, secret.encode())
        )
    assert f"it begins with {LOCAL_SECRET}" in caplog.text
    assert SECRET not in caplog.text


def test_joserfc_agrees_about_the_published_keys(provider: KeyServer) -> None:
    """The tests' provider is a real one: another library reads its keys and takes its tokens."""
    published = KeySet.import_key_set(httpx.get(provider.url).json())
    for pair in PAIRS.values():
        decoded = jwt.decode(pair.token(), published, registry=AnySignature())
        assert decoded.claims["sub"] == "alice"
