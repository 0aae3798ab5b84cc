"""The length of names, in characters and in bytes."""

import pytest

from chalicelib.protocol.names import is_name


@pytest.mark.parametrize("name", ["a", "n" * 128, "ü" * 128, "\N{PARTY POPPER}" * 64, "\x00"])
def test_a_name_has_up_to_128_characters_and_256_bytes(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "text", ["", "n" * 129, "ü" * 127 + "€", "\N{PARTY POPPER}" * 65, "\ud800" * 86]
)
def test_an_empty_or_longer_text_is_not_a_name(text: str) -> None:
    assert not is_name(text)
