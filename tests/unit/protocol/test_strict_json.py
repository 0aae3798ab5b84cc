"""The JSON that is accepted, the errors for the rest, and the low cost of a refusal."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.errors import BadRequest
from chalicelib.protocol import strict_json
from chalicelib.protocol.strict_json import MAX_DEPTH, encode, parse_json
from tests.support.strategies import json_values


@given(json_values)
def test_any_json_is_parsed_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False, indent=1)) == value


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "not JSON: Expecting value"),
        ("{", "not JSON: "),
        ('{"a":1}{}', "not JSON: Extra data"),
        ("\ufeff{}", "not JSON: "),
        ("'a'", "not JSON: "),
        ("NaN", "not JSON: NaN is not a JSON value"),
        ("[Infinity]", "not JSON: Infinity is"),
        ("-Infinity", "not JSON: -Infinity is"),
        ("1e999", "a number is out of range: the largest that is allowed is about 1.8e308"),
        ("-1E400", "a number is out of range"),
        ("9" * 310, "a number is out of range"),
        ("-" + "9" * 1_000_000, "a number is out of range"),
        ('{"a": 1, "b": 2, "a": 1}', "a is repeated in an object; each name must be unique"),
        ('{"x": [{"sub": 1, "\\u0073ub": 2}]}', "sub is repeated in an object"),
    ],
)
def test_bad_json_is_refused_with_its_reason(text: str, detail: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_json(text)
    assert refused.value.detail.startswith(detail)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_bounded_and_any_parsed_value_can_be_encoded(opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    deepest = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    assert encode(parse_json(deepest)).decode() == deepest
    for text in (opening + deepest + closing, opening * 100_000, opening * 100_000 + "x" * 10**6):
        with pytest.raises(BadRequest, match="nested deeper than 500 levels"):
            parse_json(text)


def test_brackets_in_strings_and_side_by_side_do_not_count_as_depth() -> None:
    text = json.dumps([["[{" * 1000, '\\"' * 1000]] * 1000)
    assert parse_json(text) == json.loads(text)


def test_depth_is_measured_in_one_pass() -> None:
    """An unterminated string is scanned once, not again from each of its quotes."""
    text = "[" * (MAX_DEPTH - 1) + "[],[]," + '"' + '\\"' * 500_000
    tokens = list(strict_json._STRING_OR_BRACKET.finditer(text))
    assert len(tokens) == MAX_DEPTH - 1 + 4 + 1
    with pytest.raises(BadRequest, match="Unterminated string"):
        parse_json(text)


def test_a_lone_surrogate_cannot_be_encoded() -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        encode({"data": "\ud800"})


@given(st.text())
def test_any_text_is_json_or_a_bad_request(text: str) -> None:
    try:
        assert parse_json(text) == json.loads(text)
    except BadRequest as refused:
        assert refused.detail
