"""Name resolution in threads, and its cache."""

import threading
from typing import Any

from chalicelib.delivery.resolver import Address, Resolver
from chalicelib.delivery.system import SYSTEM, System

SECONDS = 20.0
NAME = ("127.0.0.1", 80)


class Resolved:
    """A resolver, and a signal that something was resolved."""

    def __init__(self, ttl_seconds: float = 60.0, system: System = SYSTEM) -> None:
        self._signal = threading.Event()
        self.resolver: Resolver[str] = Resolver(
            on_resolved=self._signal.set, ttl_seconds=ttl_seconds, system=system
        )

    def take(self) -> dict[str, list[Address]]:
        """Wait for a lookup; return the addresses of each waiter."""
        assert self._signal.wait(SECONDS)
        self._signal.clear()
        return dict(self.resolver.take_resolved())


def test_waiters_for_one_name_share_a_lookup() -> None:
    lookups: list[Any] = []
    started = threading.Event()

    def counted(*arguments: Any, **named: Any) -> Any:
        lookups.append(arguments)
        assert started.wait(SECONDS)
        return SYSTEM.resolve(*arguments, **named)

    resolved = Resolved(system=SYSTEM._replace(resolve=counted))
    for waiter in ("first", "second"):
        resolved.resolver.resolve(*NAME, waiter)
    started.set()
    addresses = resolved.take()
    assert [one[4] for one in addresses["first"]] == [NAME]
    assert addresses["second"] == addresses["first"]
    assert lookups == [NAME]


def test_addresses_are_cached_until_they_are_forgotten() -> None:
    resolved = Resolved()
    assert resolved.resolver.cached(*NAME) == []
    resolved.resolver.resolve(*NAME, "waiter")
    addresses = resolved.take()["waiter"]
    assert resolved.resolver.cached(*NAME) == addresses
    resolved.resolver.forget(*NAME)
    assert resolved.resolver.cached(*NAME) == []


def test_cached_addresses_expire() -> None:
    resolved = Resolved(ttl_seconds=0.0)
    resolved.resolver.resolve(*NAME, "waiter")
    assert resolved.take()["waiter"] != []
    assert resolved.resolver.cached(*NAME) == []


def test_an_unknown_name_has_no_addresses_and_is_looked_up_again() -> None:
    resolved = Resolved()
    for _ in range(2):
        resolved.resolver.resolve("nowhere.invalid", 80, "waiter")
        assert resolved.take() == {"waiter": []}
