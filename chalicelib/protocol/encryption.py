"""Encrypted messages: JWE (RFC 7516) that one user can read, by keys of their own.

A user's keys are derived (HKDF, RFC 5869) from the master keys of the settings, so that nothing
about them is stored, and one user's key says nothing of another's. The first master key encrypts;
the others are there to read what was encrypted before a rotation.

The libraries are loaded by who encrypts: 30 ms that no other cold start has to wait for.
"""

import json
from collections.abc import Sequence

from chalicelib.settings import MasterKey

KEY_BYTES = 32  # of A256GCM
CONTEXT = b"herald.v1 message key\0"  # no other use of a master key gives the same keys
NOBODY = "queue"  # as a user's key, which always has a `/`
IV_AND_TAG = 16 + 22  # of A256GCM, in base64url: 96 and 128 bits

Jwk = dict[str, str]


class Encryption:
    """Encrypts for users, and hands them the keys that decrypt."""

    def __init__(self, master_keys: Sequence[MasterKey]) -> None:
        """The first of `master_keys` encrypts; without any there is no encryption."""
        self._master_keys = master_keys

    @property
    def available(self) -> bool:
        """Whether there is a key to encrypt with."""
        return bool(self._master_keys)

    def encrypt(self, plaintext: bytes, user_key: str) -> str:
        """A JWE in compact serialization that the user of `user_key` can decrypt, and its `kid`
        says with which of their keys."""
        from joserfc.jwe import encrypt_compact
        from joserfc.jwk import OctKey

        master_key = self._master_keys[0]
        key = OctKey.import_key(_derived(master_key, user_key))
        return encrypt_compact(self._header(), plaintext, key)

    def seal(self, plaintext: bytes) -> bytes:
        """What only `unseal` can read: for encrypted messages that have to wait somewhere."""
        return self.encrypt(plaintext, NOBODY).encode()

    def unseal(self, sealed: bytes) -> bytes:
        """The inverse of `seal`. Raises KeyError when the master key is not there any more."""
        from joserfc.jwe import decrypt_compact
        from joserfc.jwk import OctKey
        from joserfc.util import urlsafe_b64decode

        kid = json.loads(urlsafe_b64decode(sealed.partition(b".")[0]))["kid"]
        keys = {master_key.kid: master_key for master_key in self._master_keys}
        key = OctKey.import_key(_derived(keys[kid], NOBODY))
        plaintext = decrypt_compact(sealed, key).plaintext
        assert plaintext is not None  # noqa: S101 - decrypting leaves one, or raises
        return plaintext

    def size(self, plaintext_bytes: int) -> int:
        """How long the JWE of so many bytes is, whoever can decrypt it."""
        from joserfc.util import json_b64encode

        text = -(-plaintext_bytes * 4 // 3)
        return len(json_b64encode(self._header())) + IV_AND_TAG + text + len("....")

    def keys_of(self, user_key: str) -> list[Jwk]:
        """The keys (RFC 7517) that decrypt what is encrypted for a user, the newest first."""
        from joserfc.util import urlsafe_b64encode

        return [
            {
                "kty": "oct",
                "use": "enc",
                "kid": master_key.kid,
                "k": urlsafe_b64encode(_derived(master_key, user_key)).decode(),
            }
            for master_key in self._master_keys
        ]

    def _header(self) -> dict[str, str]:
        return {"alg": "dir", "enc": "A256GCM", "kid": self._master_keys[0].kid}


def _derived(master_key: MasterKey, user_key: str) -> bytes:
    """A user's key. The context ends where the user begins, so no two users share one."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = CONTEXT + user_key.encode()
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(master_key.secret)
