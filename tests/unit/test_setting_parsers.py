"""The texts that each parser accepts, its values and its description."""

from enum import StrEnum
from ipaddress import ip_network
from typing import Any

import pytest

from chalicelib.setting_parsers import (
    HTTP_URL,
    KEY_SET_URL,
    NETWORKS,
    ORIGINS,
    SECRET_ARN,
    Parser,
    one_of,
    rate,
    whole_number,
)


class Answer(StrEnum):
    YES = "yes"
    NO = "no"


ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:herald"


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (whole_number(1, 5), "1", 1),
        (whole_number(1, 5), "5", 5),
        (rate("second"), "0.5", 0.5),
        (one_of(Answer), "yes", Answer.YES),
        (NETWORKS, "10.0.0.0/8,, ::/32", (ip_network("10.0.0.0/8"), ip_network("::/32"))),
        (NETWORKS, "::ffff:10.0.0.0/104", (ip_network("10.0.0.0/8"),)),
        (ORIGINS, "https://App.example.com/", ("https://app.example.com",)),
        (HTTP_URL, "http://example.com/", "http://example.com"),
        (KEY_SET_URL, "https://example.com/keys/", "https://example.com/keys/"),
        (KEY_SET_URL, "http://127.0.0.1:8000/keys", "http://127.0.0.1:8000/keys"),
        (SECRET_ARN, ARN, ARN),
    ],
)
def test_an_accepted_text_becomes_a_value(parser: Parser[Any], text: str, value: object) -> None:
    assert parser.parse(text) == value


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (whole_number(1, 5), "0"),
        (whole_number(1, 5), "6"),
        (whole_number(1, 5), "1.5"),
        (rate("second"), "0"),
        (rate("second"), "nan"),
        (rate("second"), "inf"),
        (one_of(Answer), "YES"),
        (NETWORKS, "10.0.0.1/8"),
        (ORIGINS, "app.example.com"),
        (HTTP_URL, "ftp://example.com"),
        (KEY_SET_URL, "http://example.com/keys"),
        (KEY_SET_URL, "https://user@example.com/keys"),
        (KEY_SET_URL, "https://example.com/#/"),
        (SECRET_ARN, "arn:aws:sns:us-east-1:123456789012:topic"),
    ],
)
def test_any_other_text_is_refused(parser: Parser[Any], text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller makes the message
        parser.parse(text)


def test_a_parser_describes_the_texts_that_it_accepts() -> None:
    assert whole_number(1, 5).allowed == "a whole number from 1 to 5"
    assert rate("minute").allowed == "a number from 0.000001 to 1000000000, per minute"
    assert one_of(Answer).allowed == "yes or no"
    assert NETWORKS.allowed == "comma-separated IPv4 or IPv6 CIDRs"
