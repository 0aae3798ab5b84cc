"""Strict JSON (RFC 8259): the parser for what clients send, and the encoder.

It is stricter than the RFC where two parsers could read one text differently: it refuses a key that
an object repeats (RFC 8725, RFC 8259 section 4), NaN, and a number that a double can't hold.
"""

import json
import re
from typing import Any

from chalicelib.errors import BadRequest

MAX_DEPTH = 500
MAX_DIGITS = 309  # of an integer that a double can hold
OUT_OF_RANGE = "a number is out of range: the largest that is allowed is about 1.8e308"

_OPENING, _CLOSING = frozenset("[{"), frozenset("]}")
# An unterminated string matches up to the end of the text. Otherwise the search would start again
# at each quote in it, which takes quadratic time.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def parse_json(text: str) -> object:
    """Return the value of a JSON text.

    Raises BadRequest, which says what is wrong and where, but quotes nothing except repeated keys.
    """
    _check_depth(text)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"not JSON: {error}") from None


def encode(value: object, *, sort_keys: bool = False) -> bytes:
    """Return compact JSON in UTF-8. Raises BadRequest for text that UTF-8 can't encode."""
    try:
        return json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys
        ).encode()
    except UnicodeEncodeError:
        raise BadRequest("data contains a lone surrogate, which UTF-8 can't encode") from None


def _check_depth(text: str) -> None:
    """Raise BadRequest for JSON that is nested too deeply for other parsers, or for Python's.

    A text with few brackets passes without a scan.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        character = token[0]
        if character in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                raise BadRequest(f"the JSON is nested deeper than {MAX_DEPTH} levels")
        elif character in _CLOSING:
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadRequest(f"{name} is repeated in an object; each name must be unique")
            seen.add(name)
    return fields


def _refuse_constant(name: str) -> object:
    raise BadRequest(f"not JSON: {name} is not a JSON value")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadRequest(OUT_OF_RANGE)
    return number


def _parse_int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise BadRequest(OUT_OF_RANGE)
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_refuse_constant,
    parse_float=_parse_float,
    parse_int=_parse_int,
)
