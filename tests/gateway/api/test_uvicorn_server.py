"""How the server listens."""

import errno
import socket

import pytest

from gateway.api.uvicorn_server import listen
from gateway.configuration import ConfigurationError, configuration
from tests.support.clients import configured


def test_no_answer_waits_for_an_acknowledgement() -> None:
    """Nagle's algorithm (RFC 896) and delayed ones (RFC 1122) would make each REST answer wait."""
    with (
        listen(configured()) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_not_permitted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ConfigurationError, match="PORT holds 80, which this user may not listen"):
        listen(configuration({"PORT": "80"}))
