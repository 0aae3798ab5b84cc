"""The master keys of encrypted messages: in the settings, or in AWS Secrets Manager."""

import time
from collections.abc import Callable

from chalicelib.auth.cached_fetch import DEFAULT_WAITS, CachedFetch, FetchError, FetchWaits
from chalicelib.auth.secrets_manager import read_secret
from chalicelib.errors import KeysUnavailable, Unavailable
from chalicelib.protocol.encryption import FixedKeys, MasterKeys
from chalicelib.settings import MASTER_KEYS, MasterKey, Settings


def master_keys(settings: Settings) -> MasterKeys | None:
    """Return the keys that the settings name; None if they name none. Fetches nothing."""
    if settings.encryption_keys_arn is not None:
        return StoredKeys(settings.encryption_keys_arn)
    return FixedKeys(settings.encryption_keys) if settings.encryption_keys else None


class StoredKeys:
    """Keys in Secrets Manager, whose secret's whole value is a JWK Set.

    They are fetched when the first encrypted message is handled.
    """

    def __init__(
        self, arn: str, now: Callable[[], float] = time.time, *, waits: FetchWaits = DEFAULT_WAITS
    ) -> None:
        """Fetch nothing yet. `now` is the clock, in epoch seconds."""
        self._cached = CachedFetch(
            "the keys of HERALD_ENCRYPTION_KEYS_ARN", lambda: _fetch_keys(arn), now, waits
        )

    def current(self) -> tuple[MasterKey, ...]:
        try:
            return self._cached.get()
        except Unavailable as error:
            raise KeysUnavailable(error.detail, retry_after=error.retry_after) from error

    def named(self, kid: str) -> MasterKey | None:
        return _named(kid, self.current()) or _named(kid, self._cached.refresh() or ())


def _named(kid: str, keys: tuple[MasterKey, ...]) -> MasterKey | None:
    return next((key for key in keys if key.kid == kid), None)


def _fetch_keys(arn: str) -> tuple[MasterKey, ...]:
    """Return the keys of a stored JWK Set. Raises FetchError, which doesn't quote the secret."""
    try:
        return MASTER_KEYS.parse(read_secret(arn).decode())
    except ValueError:
        raise FetchError(f"its value isn't {MASTER_KEYS.allowed}") from None
