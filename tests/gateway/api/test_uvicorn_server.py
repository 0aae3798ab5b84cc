"""The listening socket of the server."""

import errno
import socket

import pytest

from gateway.api.uvicorn_server import listen
from gateway.configuration import ConfigurationError, configuration
from tests.support.clients import configured


def test_responses_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm with delayed acknowledgements would delay each REST response."""
    with (
        listen(configured()) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_not_permitted_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ConfigurationError, match="PORT holds 80, which this user may not listen"):
        listen(configuration({"PORT": "80"}))
