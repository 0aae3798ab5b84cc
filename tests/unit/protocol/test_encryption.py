"""Encryption, checked with the RFCs' test vectors and with another library."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto import jwe, jwk

from chalicelib.auth.principal import user_key
from chalicelib.protocol.encryption import CONTEXT, Encrypter, Encryption, FixedKeys
from chalicelib.settings import MasterKey, Settings, SettingsError

OLD, NEW = MasterKey("2026-10", b"o" * 32), MasterKey("2026-11", b"n" * 48)
ALICE = user_key("acme", "alice")


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_another_library_decrypts_a_message() -> None:
    encryption = Encryption(FixedKeys([NEW, OLD]))
    sealed = encryption.encrypter().encrypt(b'{"text":"hi"}', ALICE)
    keys = jwk.JWKSet.from_json(json.dumps({"keys": encryption.keys_of(ALICE)}))
    received = jwe.JWE()
    received.deserialize(sealed)
    received.decrypt(keys.get_key(received.jose_header["kid"]))
    assert received.payload == b'{"text":"hi"}'
    assert received.jose_header == {"alg": "dir", "enc": "A256GCM", "kid": "2026-11"}


def test_a_message_is_encrypted_as_the_rfcs_say() -> None:
    """Decrypt by hand: HKDF-SHA256 (RFC 5869), and the parts of a JWE (RFC 7516 section 7.1)."""
    encryption = Encryption(FixedKeys([NEW]))
    header, encrypted_key, iv, text, tag = encryption.encrypter().encrypt(b"data", ALICE).split(".")
    assert encrypted_key == ""  # `dir`: RFC 7518 section 4.5
    key = HKDF(SHA256(), 32, salt=None, info=CONTEXT + ALICE.encode()).derive(NEW.secret)
    opened = AESGCM(key).decrypt(decoded(iv), decoded(text) + decoded(tag), header.encode())
    assert opened == b"data"
    assert decoded(encryption.keys_of(ALICE)[0]["k"]) == key
    assert (len(decoded(iv)), len(decoded(tag))) == (12, 16)


def test_hkdf_passes_test_case_1_of_rfc_5869() -> None:
    derived = HKDF(SHA256(), 42, salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA))).derive(
        b"\x0b" * 22
    )
    assert derived.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_messages_from_before_a_rotation_can_still_be_decrypted() -> None:
    before = Encrypter(OLD).encrypt(b"then", ALICE)
    keys = Encryption(FixedKeys([NEW, OLD])).keys_of(ALICE)
    assert [key["kid"] for key in keys] == ["2026-11", "2026-10"]
    received = jwe.JWE()
    received.deserialize(before, jwk.JWK(**keys[1]))
    assert received.payload == b"then"


names = st.text(min_size=1, max_size=20)
users = st.builds(user_key, st.none() | names, names)


@given(users, users)
def test_no_two_users_share_a_key(one: str, other: str) -> None:
    encryption = Encryption(FixedKeys([NEW, OLD]))
    keys = [key["k"] for user in {one, other} for key in encryption.keys_of(user)]
    assert len(set(keys)) == len(keys)


@given(st.binary(max_size=2000), users)
def test_the_size_of_a_message_is_known_before_it_is_encrypted(data: bytes, user: str) -> None:
    encryption = Encrypter(MasterKey("é", b"k" * 32))
    assert encryption.size(len(data)) == len(encryption.encrypt(data, user))


def test_equal_messages_are_encrypted_differently() -> None:
    encryption = Encrypter(NEW)
    assert len({encryption.encrypt(b"same", ALICE) for _ in range(1000)}) == 1000


def key(**fields: Any) -> dict[str, Any]:
    return {"kty": "oct", "kid": "a", "k": "A" * 43, **fields}


def test_the_master_keys_are_a_jwk_set_in_the_settings() -> None:
    value = json.dumps({"keys": [key(use="enc", alg="A256GCM"), key(kid="b", k="AAAA" * 16)]})
    keys = Settings.from_environ({"HERALD_ENCRYPTION_KEYS": value}).encryption_keys
    assert keys == (MasterKey("a", b"\0" * 32), MasterKey("b", b"\0" * 48))


@pytest.mark.parametrize(
    "value",
    [
        "a secret",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": {}}',
        '{"keys": ["a secret"]}',
        json.dumps({"keys": [key(k="A" * 42)]}),
        json.dumps({"keys": [key(k="+" * 43)]}),
        json.dumps({"keys": [key(k=1)]}),
        json.dumps({"keys": [key(kid="")]}),
        json.dumps({"keys": [key(kid=1)]}),
        json.dumps({"keys": [key(), key()]}),
        json.dumps({"keys": [{"kty": "oct", "k": "A" * 43}]}),
        json.dumps({"keys": [{"kty": "RSA", "kid": "a", "n": "a secret", "e": "AQAB"}]}),
    ],
)
def test_a_wrong_setting_is_named_but_not_shown(value: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environ({"HERALD_ENCRYPTION_KEYS": value})
    assert str(wrong.value).startswith(f"HERALD_ENCRYPTION_KEYS holds {len(value)} bytes; allowed")
    assert "secret" not in str(wrong.value)


def test_the_repr_of_settings_hides_the_keys() -> None:
    value = json.dumps({"keys": [key(k="c2VjcmV0" * 8)]})
    settings = Settings.from_environ({"HERALD_ENCRYPTION_KEYS": value})
    assert "c2VjcmV0" not in repr(settings)
    assert "secret" not in repr(settings.encryption_keys[0]).replace("secretsecret", "")
