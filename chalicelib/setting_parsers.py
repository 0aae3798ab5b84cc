"""Parsers of environment variables. Each describes the texts that it accepts."""

import re
from collections.abc import Callable
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Generic, TypeVar
from urllib.parse import urlsplit

MAX_NUMBER = 1_000_000_000  # as seconds, 30 years; sums of larger ones could overflow in storage
MIN_RATE = 0.000001
MAPPED_PREFIX_BITS = 96  # of ::ffff:0:0/96, the IPv4-mapped addresses
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

Network = IPv4Network | IPv6Network
T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)
Number = TypeVar("Number", int, float)


class Parser(Generic[T]):
    """Parses the text of a variable, and describes the texts that it accepts."""

    def __init__(self, parse: Callable[[str], T], allowed: str, *, secret: bool = False) -> None:
        """Describe a kind of value.

        Args:
            parse: Returns the value; raises ValueError for a text that isn't accepted.
            allowed: The accepted texts in words, for error messages and the documentation.
            secret: Keep the text out of error messages, and the value out of any `repr`.
        """
        self.parse = parse
        self.allowed = allowed
        self.secret = secret


def _within(number: Callable[[str], Number], low: Number, high: Number) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = number(text)
        if not low <= value <= high:  # refuses NaN, too
            raise ValueError
        return value

    return parse


def whole_number(minimum: int, maximum: int = MAX_NUMBER, suffix: str = "") -> Parser[int]:
    allowed = f"a whole number from {minimum} to {maximum}{suffix}"
    return Parser(_within(int, minimum, maximum), allowed)


def rate(per: str) -> Parser[float]:
    allowed = f"a number from {MIN_RATE:f} to {MAX_NUMBER}, per {per}"
    return Parser(_within(float, MIN_RATE, MAX_NUMBER), allowed)


def one_of(choices: type[Choice]) -> Parser[Choice]:
    return Parser(choices, " or ".join(choices))


def comma_separated(item: Callable[[str], T], items: str) -> Parser[tuple[T, ...]]:
    def parse(text: str) -> tuple[T, ...]:
        return tuple(item(part.strip()) for part in text.split(",") if part.strip())

    return Parser(parse, f"comma-separated {items}")


def _network(text: str) -> Network:
    """Parse a CIDR. An IPv4-mapped IPv6 network (RFC 4291 section 2.5.5.2) becomes IPv4."""
    network = ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < MAPPED_PREFIX_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - MAPPED_PREFIX_BITS))


def _origin(text: str) -> str:
    origin = text.rstrip("/").lower()
    if not (urlsplit(origin).scheme and urlsplit(origin).netloc):
        raise ValueError
    return origin


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError
    return text.rstrip("/")


def _key_set_url(text: str) -> str:
    """Accept only URLs whose answer can't be replaced on its way, since that would let an attacker
    forge tokens."""
    _http_url(text)
    parts = urlsplit(text)
    over_tls = parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS
    if not over_tls or "@" in parts.netloc or parts.fragment or parts.port == 0:
        raise ValueError
    return text  # unchanged: a trailing slash can make a difference


def _secret_arn(text: str) -> str:
    if not re.fullmatch(r"arn:[^:]+:secretsmanager:[^:]+:\d*:secret:.+", text):
        raise ValueError
    return text


TEXT = Parser(str, "text")
TABLE = Parser(str, "a table's name")
TOPIC = Parser(str, "a topic's ARN")
HTTP_URL = Parser(_http_url, "an http(s) URL")
NETWORKS = comma_separated(_network, "IPv4 or IPv6 CIDRs")
ORIGINS = comma_separated(_origin, "origins such as https://app.example.com")
KEY_SET_URL = Parser(_key_set_url, "an https URL, or an http URL of a loopback address")
SECRET_ARN = Parser(_secret_arn, "the ARN of a Secrets Manager secret")
