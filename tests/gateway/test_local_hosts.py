"""The hosts that a request may name."""

from typing import Any

import pytest

from gateway.local_hosts import LocalHosts, host_name


def scope(*hosts: str, server: Any = ("127.0.0.1", 8000)) -> dict[str, Any]:
    return {"headers": [(b"host", host.encode()) for host in hosts], "server": server}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.:8000",
        "app.localhost",
        "127.0.0.1",
        "127.8.9.1:1",
        "[::1]",
        "[::1]:8000",
    ],
)
def test_names_and_addresses_of_this_machine_are_local(host: str) -> None:
    assert LocalHosts().foreign(scope(host)) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
        "[::1].evil.example",
        "[::1",
        "10.0.0.1",
        "0x7f000001.evil.example",
        "",
    ],
)
def test_other_hosts_are_foreign(host: str) -> None:
    assert LocalHosts().foreign(scope(host)) == host


def test_a_request_without_one_host_is_foreign() -> None:
    assert LocalHosts().foreign(scope()) == ""
    assert LocalHosts().foreign(scope("localhost", "evil.example")) == "localhost, evil.example"


def test_the_address_at_which_a_request_arrives_is_local() -> None:
    assert LocalHosts().foreign(scope("192.168.0.7:80", server=("192.168.0.7", 80))) is None
    assert LocalHosts().foreign(scope("[fe80::1]:80", server=("fe80::1", 80))) is None
    assert LocalHosts().foreign(scope("192.168.0.8", server=("192.168.0.7", 80))) is not None


def test_more_names_can_be_allowed() -> None:
    hosts = LocalHosts({"Laptop.example", "0.0.0.0"})
    assert hosts.foreign(scope("laptop.EXAMPLE:80")) is None
    assert hosts.foreign(scope("0.0.0.0:8000")) is None
    assert hosts.foreign(scope("a.laptop.example")) is not None


def test_a_host_is_read_without_its_port() -> None:
    assert host_name("A.example:80") == "a.example"
    assert host_name("[::1]:80") == "::1"
