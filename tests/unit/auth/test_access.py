"""IP and origin rules, and the choice of a subprotocol."""

import pytest

from chalicelib.auth.access import AccessRules, choose_subprotocol
from chalicelib.errors import BadRequest, Forbidden
from chalicelib.settings import Settings


def allowed(source_ip: str, origin: str | None = None, **environ: str) -> bool:
    variables = {f"HERALD_{name.upper()}": value for name, value in environ.items()}
    rules = AccessRules(Settings.from_environ(variables))
    try:
        rules.check(source_ip, origin)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    ("source_ip", "environ", "expected"),
    [
        ("1.2.3.4", {}, True),
        ("1.2.3.4", {"ip_allow": "1.2.3.0/24"}, True),
        ("1.2.4.4", {"ip_allow": "1.2.3.0/24"}, False),
        ("1.2.3.4", {"ip_deny": "1.2.3.4"}, False),
        ("1.2.3.5", {"ip_deny": "1.2.3.4"}, True),
        ("1.2.3.4", {"ip_allow": "1.2.3.0/24", "ip_deny": "1.2.3.4/32"}, False),
        ("2001:db8::1", {"ip_allow": "2001:db8::/32"}, True),
        ("2001:db9::1", {"ip_allow": "2001:db8::/32,10.0.0.0/8"}, False),
        ("::ffff:1.2.3.4", {"ip_deny": "1.2.3.4"}, False),
        ("1.2.3.4", {"ip_deny": "::/0"}, True),
        ("1.2.3.4", {"ip_deny": "::ffff:1.2.3.4"}, False),
        ("::ffff:1.2.3.4", {"ip_allow": "::ffff:1.2.3.0/120"}, True),
        ("1.2.4.4", {"ip_allow": "::ffff:1.2.3.0/120"}, False),
        ("2001:db8::1", {"ip_deny": "::/0", "ip_allow": "2001:db8::/32"}, False),
        ("2001:db8::1", {"ip_deny": "0.0.0.0/0"}, True),
    ],
)
def test_a_clients_address_must_be_allowed_and_not_denied(
    source_ip: str, environ: dict[str, str], expected: bool
) -> None:
    assert allowed(source_ip, **environ) is expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, True),
        ("https://app.example.com", True),
        ("HTTPS://APP.example.com", True),
        ("https://app.example.com.evil.com", False),
        ("http://app.example.com", False),
        ("null", False),
        ("", False),
    ],
)
def test_an_origin_must_match_as_a_whole_if_there_are_rules(
    origin: str | None, expected: bool
) -> None:
    assert allowed("1.2.3.4", origin, allowed_origins="https://app.example.com") is expected
    assert allowed("1.2.3.4", origin)


def test_the_subprotocol_is_chosen_from_those_offered() -> None:
    assert choose_subprotocol([]) is None
    assert choose_subprotocol(["mqtt", "herald.v1"]) == "herald.v1"


def test_unknown_subprotocols_alone_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"do not include herald\.v1"):
        choose_subprotocol(["mqtt", "herald.v2"])
