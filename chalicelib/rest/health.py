"""The answer of `GET /health`, which anyone may ask for."""

import threading
import time
from collections.abc import Callable

from chalicelib.errors import Unavailable

KEPT_SECONDS = 5.0


class HealthCheck:
    """Checks storage at most once in a while, however often it is asked. Thread-safe."""

    def __init__(
        self,
        check: Callable[[], None],
        *,
        kept_seconds: float = KEPT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the check, which raises Unavailable; its answer is kept for `kept_seconds`."""
        self._check = check
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._kept_until: float | None = None
        self._trouble: Unavailable | None = None

    def require(self) -> None:
        """Raise Unavailable unless storage could be reached when it was last checked."""
        with self._lock:  # callers that wait here get the same answer
            if self._kept_until is None or self._clock() >= self._kept_until:
                self._trouble = self._ask()
                self._kept_until = self._clock() + self._kept_seconds
            trouble = self._trouble
        if trouble is not None:
            raise Unavailable(trouble.detail, retry_after=trouble.retry_after)

    def _ask(self) -> Unavailable | None:
        try:
            self._check()
        except Unavailable as trouble:
            return trouble
        return None
