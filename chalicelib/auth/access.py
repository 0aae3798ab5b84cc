"""From where a client may come: its address, its origin, and the subprotocols that it offers."""

from collections.abc import Sequence
from ipaddress import ip_address

from chalicelib.errors import BadRequest, Forbidden
from chalicelib.settings import Settings

SUBPROTOCOL = "herald.v1"


class AccessRules:
    """The settings' address and origin rules, asked before anything is done for a client."""

    def __init__(self, settings: Settings) -> None:
        self._allow = settings.ip_allow
        self._deny = settings.ip_deny
        self._origins = settings.allowed_origins

    def check(self, source_ip: str, origin: str | None) -> None:
        """Raise Forbidden unless a client at `source_ip`, from a page of `origin`, may come in.

        `source_ip` is API Gateway's `identity.sourceIp`, never a header that a client can send.
        A request without `Origin` comes from no browser, so no page can have forged it.
        """
        if self._allow or self._deny:
            address = ip_address(source_ip)
            # An IPv4 client seen through an IPv6 socket is the same client.
            address = getattr(address, "ipv4_mapped", None) or address
            if any(address in network for network in self._deny):
                raise Forbidden("the address is not allowed")
            if self._allow and not any(address in network for network in self._allow):
                raise Forbidden("the address is not allowed")
        if self._origins and origin is not None and origin.lower() not in self._origins:
            raise Forbidden("the origin is not allowed")


def choose_subprotocol(offered: Sequence[str]) -> str | None:
    """The subprotocol to accept; None where none is offered. Raises BadRequest for others."""
    if not offered:
        return None
    if SUBPROTOCOL not in offered:
        raise BadRequest(f"of the offered subprotocols none is {SUBPROTOCOL}")
    return SUBPROTOCOL
