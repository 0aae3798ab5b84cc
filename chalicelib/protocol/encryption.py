"""Message encryption: JWEs (RFC 7516) that only one user can decrypt.

Each user's keys are derived (HKDF, RFC 5869) from the master keys in the settings. So no user key
is stored, and one user's key reveals nothing about another's. The first master key encrypts; the
others decrypt what was encrypted before a rotation.

The libraries take 30 ms to load, so they are imported when they are first needed.
"""

import json
from collections.abc import Sequence

from chalicelib.settings import MasterKey

KEY_BYTES = 32  # of A256GCM
CONTEXT = b"herald.v1 message key\0"  # any other use of a master key derives different keys
STORAGE = "queue"  # stands in for a user key; it can't be one, since a user key contains a `/`
IV_AND_TAG = 16 + 22  # of A256GCM, in base64url: 96 and 128 bits

Jwk = dict[str, str]


class Encryption:
    """Encrypts messages for users, and returns the keys with which they decrypt them."""

    def __init__(self, master_keys: Sequence[MasterKey]) -> None:
        """Take the master keys, the newest first. Without one, nothing can be encrypted."""
        self._master_keys = master_keys

    @property
    def available(self) -> bool:
        """Return whether there is a key to encrypt with."""
        return bool(self._master_keys)

    def encrypt(self, plaintext: bytes, user_key: str) -> str:
        """Return a JWE (compact serialization) that only the user with `user_key` can decrypt.

        Its `kid` names the user's key that decrypts it.
        """
        from joserfc.jwe import encrypt_compact
        from joserfc.jwk import OctKey

        master_key = self._master_keys[0]
        key = OctKey.import_key(_derived(master_key, user_key))
        return encrypt_compact(self._header(), plaintext, key)

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypt for storage: only `unseal` decrypts it."""
        return self.encrypt(plaintext, STORAGE).encode()

    def unseal(self, sealed: bytes) -> bytes:
        """Decrypt what `seal` returned. Raises KeyError if its master key was removed."""
        from joserfc.jwe import decrypt_compact
        from joserfc.jwk import OctKey
        from joserfc.util import urlsafe_b64decode

        kid = json.loads(urlsafe_b64decode(sealed.partition(b".")[0]))["kid"]
        keys = {master_key.kid: master_key for master_key in self._master_keys}
        key = OctKey.import_key(_derived(keys[kid], STORAGE))
        plaintext = decrypt_compact(sealed, key).plaintext
        assert plaintext is not None  # noqa: S101 - decrypting returns it, or raises
        return plaintext

    def size(self, plaintext_bytes: int) -> int:
        """Return the length of a JWE of that many bytes, which is the same for every user."""
        from joserfc.util import json_b64encode

        ciphertext = -(-plaintext_bytes * 4 // 3)
        return len(json_b64encode(self._header())) + IV_AND_TAG + ciphertext + len("....")

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
            for master_key in self._master_keys
        ]

    def _header(self) -> dict[str, str]:
        return {"alg": "dir", "enc": "A256GCM", "kid": self._master_keys[0].kid}


def _derived(master_key: MasterKey, user_key: str) -> bytes:
    """Derive a user's key: the user is part of HKDF's `info`, so each user gets another key."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = CONTEXT + user_key.encode()
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(master_key.secret)
