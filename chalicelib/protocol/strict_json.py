"""JSON (RFC 8259) as Herald reads it from anybody, and writes it.

Stricter than the RFC where leniency would let two readers of one text see different things: no
key twice in an object (RFC 8725 and RFC 8259 section 4), no NaN, no number beyond a double.
"""

import json
import re
from typing import Any

from chalicelib.errors import BadRequest

MAX_DEPTH = 500
MAX_DIGITS = 309  # of a double's whole part

_OPENING, _CLOSING = frozenset("[{"), frozenset("]}")
# An unended string ends with the text: to look for its end again and again would take for ever.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def parse_json(text: str) -> object:
    """The value of a JSON text. Raises BadRequest, saying what is wrong and where, but nothing of
    what it holds besides a repeated key."""
    _check_depth(text)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"not JSON: {error}") from None


def encode(value: object, *, sort_keys: bool = False) -> bytes:
    """Compact JSON in UTF-8. Raises BadRequest for text that UTF-8 can't carry."""
    try:
        return json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys
        ).encode()
    except UnicodeEncodeError:
        raise BadRequest("data holds a lone surrogate, which UTF-8 can't carry") from None


def _check_depth(text: str) -> None:
    """Refuse what is nested so deeply that other parsers, or ours elsewhere, would give up.

    Brackets are looked at one by one only where there are enough of them.
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
                raise BadRequest(f"{name} is repeated in an object")
            seen.add(name)
    return fields


def _no_constant(name: str) -> object:
    raise BadRequest(f"not JSON: {name} is no value")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise BadRequest("a number is out of range")
    return number


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise BadRequest("a number is out of range")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
)
