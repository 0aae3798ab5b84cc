"""Resolve host names in threads beside the sending, since `getaddrinfo` blocks."""

import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from chalicelib.delivery.system import SYSTEM, System

Address = tuple[Any, ...]
"""One entry of `socket.getaddrinfo`: family, kind, protocol, canonical name, socket address."""

WaiterT = TypeVar("WaiterT")


class Resolver(Generic[WaiterT]):
    """Resolves names for waiters, and caches the addresses.

    Every method is for the one thread that owns the resolver.
    """

    def __init__(
        self, *, on_resolved: Callable[[], None], ttl_seconds: float, system: System = SYSTEM
    ) -> None:
        """Take `on_resolved`, which the threads call when `take_resolved` has something new."""
        self._on_resolved = on_resolved
        self._ttl_seconds = ttl_seconds
        self._system = system
        self._cache: dict[tuple[str, int], tuple[float, list[Address]]] = {}
        self._waiters: dict[tuple[str, int], list[WaiterT]] = {}
        self._resolved: deque[tuple[tuple[str, int], list[Address]]] = deque()

    def cached(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a name; an empty list when they are unknown or expired."""
        expires_at, addresses = self._cache.get((host, port), (0.0, []))
        return addresses if self._system.monotonic() < expires_at else []

    def resolve(self, host: str, port: int, waiter: WaiterT) -> None:
        """Resolve a name in a thread; `take_resolved` returns the addresses with `waiter`.

        Waiters for the same name share one lookup.
        """
        waiters = self._waiters.setdefault((host, port), [])
        waiters.append(waiter)
        if len(waiters) == 1:
            self._system.run_in_thread(self._look_up, host, port)

    def take_resolved(self) -> Iterator[tuple[WaiterT, list[Address]]]:
        """Yield each waiter whose lookup has ended, with the addresses; no address if it failed."""
        while self._resolved:
            name, addresses = self._resolved.popleft()
            self._cache[name] = self._system.monotonic() + self._ttl_seconds, addresses
            for waiter in self._waiters.pop(name, ()):
                yield waiter, addresses

    def forget(self, host: str, port: int) -> None:
        """Drop a name's cached addresses, so that the next connection resolves it again."""
        self._cache.pop((host, port), None)

    def _look_up(self, host: str, port: int) -> None:
        try:
            addresses: list[Address] = self._system.resolve(host, port, type=socket.SOCK_STREAM)
        except OSError:
            addresses = []
        self._resolved.append(((host, port), addresses))
        self._on_resolved()
