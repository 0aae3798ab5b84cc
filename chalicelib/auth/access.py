"""IP and origin rules, and the WebSocket subprotocol."""

from collections.abc import Sequence
from ipaddress import ip_address

from chalicelib.errors import BadRequest, Forbidden
from chalicelib.settings import Settings

SUBPROTOCOL = "herald.v1"


class AccessRules:
    """The rules of the settings that are checked before Herald does anything for a client."""

    def __init__(self, settings: Settings) -> None:
        self._allow = settings.ip_allow
        self._deny = settings.ip_deny
        self._origins = settings.allowed_origins

    def check(self, source_ip: str, origin: str | None) -> None:
        """Check a client's address, and the origin of the page that it runs in.

        Args:
            source_ip: API Gateway's `identity.sourceIp`, never a header, which could be forged.
            origin: The `Origin` header; None for a request without one, which no page of
                another origin can have made.

        Raises Forbidden.
        """
        self._check_address(source_ip)
        if self._origins and origin is not None and origin.lower() not in self._origins:
            raise Forbidden("requests from this origin are not allowed")

    def _check_address(self, source_ip: str) -> None:
        if not (self._allow or self._deny):
            return
        address = ip_address(source_ip)
        # An IPv6 socket shows an IPv4 client by its mapped address.
        address = getattr(address, "ipv4_mapped", None) or address
        denied = any(address in network for network in self._deny)
        allowed = not self._allow or any(address in network for network in self._allow)
        if denied or not allowed:
            raise Forbidden("requests from this IP address are not allowed")


def choose_subprotocol(offered: Sequence[str]) -> str | None:
    """Return the subprotocol to accept; None if the client offers none.

    Raises BadRequest if it offers only others.
    """
    if not offered:
        return None
    if SUBPROTOCOL not in offered:
        raise BadRequest(f"the offered subprotocols do not include {SUBPROTOCOL}")
    return SUBPROTOCOL
