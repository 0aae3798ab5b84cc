"""Faults that the console injects, so that a developer sees how an app and its clients cope."""

from dataclasses import dataclass

HANDSHAKE_STATUSES = frozenset({401, 403, 429, 500, 503})
DELIVERY_STATUSES = frozenset({403, 410, 429, 500})
MAX_DELAY_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFault:
    """The fault of POSTs to `@connections` for one connection."""

    delay_ms: int = 0
    status: int | None = None
    """The status of the response; None delivers the message."""


NO_FAULT = DeliveryFault()


class FaultInjection:
    """The faults that are switched on. They are all off at first."""

    def __init__(self) -> None:
        self.handshake_status: int | None = None
        """The status that refuses every handshake, without a call of any function."""
        self.deliveries: dict[str, DeliveryFault] = {}
        """The faults by connection id."""

    def of_delivery(self, connection_id: str) -> DeliveryFault:
        """Return how a delivery to a connection goes wrong; NO_FAULT delivers it."""
        return self.deliveries.get(connection_id, NO_FAULT)
