"""The hosts under which a gateway answers: the names and the addresses of this machine.

The page of another site can send requests here under a name of its own, which its DNS server
resolves to this machine (DNS rebinding). The browser takes the answers for that site's own, so CORS
doesn't protect them; but the `Host` header still names the site.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

ALLOWED_HOSTS = "GATEWAY_ALLOWED_HOSTS"
"""The variable that adds names, as for a phone in the same network."""


class LocalHosts:
    """Decides whether a request names this machine.

    Local are `localhost` and the names below it, the addresses of the loopback interface, the
    address at which the request arrived, and `names`.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {name.lower() for name in names}
        self._is_local = lru_cache(maxsize=64)(self._decide)

    def foreign(self, scope: Mapping[str, Any]) -> str | None:
        """Return the host that an ASGI request names, if it isn't local; otherwise None.

        Without a `Host` header, or with several, it is their text, such as the empty one.
        """
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        server = scope.get("server") or ("", None)
        if len(hosts) == 1 and self._is_local(hosts[0], server[0]):
            return None
        return b", ".join(hosts).decode("latin-1")

    def _decide(self, host: bytes, arrived_at: str) -> bool:
        name = host_name(host.decode("latin-1"))
        if name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or str(address) == arrived_at


def host_name(host: str) -> str:
    """Return the name in a `Host` header, in lower case, without its port and brackets."""
    if host.startswith("["):
        name, closed, rest = host[1:].partition("]")
        return name.lower() if closed and (not rest or rest.startswith(":")) else ""
    return host.partition(":")[0].rstrip(".").lower()


def refusal_text(host: str, scope: Mapping[str, Any]) -> str:
    """Return why a request for a foreign host is refused, and what helps."""
    use = f"use http://{authority(*scope['server'])}"
    name = host_name(host)
    if not name:
        return f"The request names no host; {use}"
    return (
        f"This gateway doesn't answer for the host {host!r}; {use}"
        f" or start it with {ALLOWED_HOSTS}={name}"
    )


def authority(host: str, port: int) -> str:
    """Return `host:port` as URLs have it: https://www.rfc-editor.org/rfc/rfc3986#section-3.2"""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
