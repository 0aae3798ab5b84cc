"""Message encryption: JWEs (RFC 7516) that only one user can decrypt.

Each user's keys are derived (HKDF, RFC 5869) from the master keys. So no user key is stored, and
one user's key reveals nothing about another's. The first master key encrypts; the others decrypt
what was encrypted before a rotation.

The libraries take 30 ms to load, so they are imported when they are first needed.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from chalicelib.settings import MasterKey

KEY_BYTES = 32  # of A256GCM
CONTEXT = b"herald.v1 message key\0"  # any other use of a master key derives different keys
STORAGE = "queue"  # stands in for a user key; it can't be one, since a user key contains a `/`
IV_AND_TAG = 16 + 22  # of A256GCM, in base64url: 96 and 128 bits

Jwk = dict[str, str]


class MasterKeys(Protocol):
    """A source of master keys. Both methods raise Unavailable if the keys can't be had."""

    def current(self) -> Sequence[MasterKey]:
        """Return the keys, the newest first."""

    def named(self, kid: str) -> MasterKey | None:
        """Return the key with this `kid`; None if there is none."""


class FixedKeys(NamedTuple):
    """Master keys that don't change: those of the settings."""

    keys: Sequence[MasterKey]

    def current(self) -> Sequence[MasterKey]:
        return self.keys

    def named(self, kid: str) -> MasterKey | None:
        return next((key for key in self.keys if key.kid == kid), None)


class Encrypter(NamedTuple):
    """Encrypts with one master key, even if that is replaced meanwhile."""

    master_key: MasterKey

    def encrypt(self, plaintext: bytes, user_key: str) -> str:
        """Return a JWE (compact serialization) that only the user with `user_key` can decrypt.

        Its `kid` names the user's key that decrypts it.
        """
        from joserfc.jwe import encrypt_compact
        from joserfc.jwk import OctKey

        key = OctKey.import_key(_derived(self.master_key, user_key))
        return encrypt_compact(self._header(), plaintext, key)

    def size(self, plaintext_bytes: int) -> int:
        """Return the length of a JWE of that many bytes, which is the same for every user."""
        from joserfc.util import json_b64encode

        ciphertext = -(-plaintext_bytes * 4 // 3)
        return len(json_b64encode(self._header())) + IV_AND_TAG + ciphertext + len("....")

    def _header(self) -> dict[str, str]:
        return {"alg": "dir", "enc": "A256GCM", "kid": self.master_key.kid}


class Encryption:
    """Encrypts messages for users, and returns the keys with which they decrypt them.

    Every method raises Unavailable if the master keys can't be had.
    """

    def __init__(self, master_keys: MasterKeys | None) -> None:
        """Take the master keys. Without any, nothing can be encrypted."""
        self._master_keys = master_keys

    @property
    def available(self) -> bool:
        """Return whether there is a key to encrypt with. Doesn't fetch it."""
        return self._master_keys is not None

    def encrypter(self) -> Encrypter:
        """Return what encrypts with the current master key."""
        return Encrypter(self._source().current()[0])

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypt for storage: only `unseal` decrypts it."""
        return self.encrypter().encrypt(plaintext, STORAGE).encode()

    def unseal(self, sealed: bytes) -> bytes:
        """Decrypt what `seal` returned. Raises KeyError if its master key was removed."""
        from joserfc.jwe import decrypt_compact
        from joserfc.jwk import OctKey
        from joserfc.util import urlsafe_b64decode

        kid = json.loads(urlsafe_b64decode(sealed.partition(b".")[0]))["kid"]
        master_key = self._source().named(kid)
        if master_key is None:
            raise KeyError(kid)
        key = OctKey.import_key(_derived(master_key, STORAGE))
        plaintext = decrypt_compact(sealed, key).plaintext
        assert plaintext is not None  # noqa: S101 - decrypting returns it, or raises
        return plaintext

    def keys_of(self, user_key: str) -> list[Jwk]:
        """Return a user's decryption keys (RFC 7517), the newest first."""
        from joserfc.util import urlsafe_b64encode

        return [
            {
                "kty": "oct",
                "use": "enc",
                "kid": master_key.kid,
                "k": urlsafe_b64encode(_derived(master_key, user_key)).decode(),
            }
            for master_key in self._source().current()
        ]

    def _source(self) -> MasterKeys:
        return self._master_keys or FixedKeys(())


def _derived(master_key: MasterKey, user_key: str) -> bytes:
    """Derive a user's key: the user is part of HKDF's `info`, so each user gets another key."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = CONTEXT + user_key.encode()
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(master_key.secret)
