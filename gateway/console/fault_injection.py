"""What the gateway does wrong because it was told to, so that failures can be seen."""

from dataclasses import dataclass

HANDSHAKE_STATUSES = frozenset({401, 403, 429, 500, 503})
DELIVERY_STATUSES = frozenset({403, 410, 429, 500})
MAX_DELAY_MS = 60_000


@dataclass(frozen=True, slots=True)
class DeliveryFault:
    """How `@connections` treats one connection."""

    delay_ms: int = 0
    status: int | None = None
    """What it answers instead of delivering."""


NO_FAULT = DeliveryFault()


class Faults:
    """The faults that are on; at first none is."""

    def __init__(self) -> None:
        self.handshake: int | None = None
        """What each handshake is answered, without asking any function."""
        self.deliveries: dict[str, DeliveryFault] = {}
        """By connection id."""

    def of(self, connection_id: str) -> DeliveryFault:
        return self.deliveries.get(connection_id, NO_FAULT)
