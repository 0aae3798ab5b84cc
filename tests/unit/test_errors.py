import pytest

from chalicelib.errors import (
    ANSWERS,
    MAX_DETAIL_CHARACTERS,
    BadRequest,
    Contended,
    HeraldError,
    InsufficientScope,
    InternalError,
    Unavailable,
)


def subclasses(error: type[HeraldError]) -> list[type[HeraldError]]:
    return [error, *(one for child in error.__subclasses__() for one in subclasses(child))]


@pytest.mark.parametrize("error", subclasses(HeraldError))
def test_every_error_has_an_answer(error: type[HeraldError]) -> None:
    assert 400 <= ANSWERS[error.code].status <= 599


def test_a_long_detail_is_cut_off() -> None:
    assert BadRequest("x" * MAX_DETAIL_CHARACTERS).detail == "x" * MAX_DETAIL_CHARACTERS
    assert BadRequest("x" * 10_000).detail == "x" * MAX_DETAIL_CHARACTERS + "…"


def test_a_lone_surrogate_in_a_detail_becomes_a_question_mark() -> None:
    assert BadRequest("\ud800 is not a known field").detail == "? is not a known field"


def test_an_internal_error_tells_the_client_nothing_else() -> None:
    error = InternalError()
    assert (error.code, error.detail) == ("internal", "Internal error. It has been logged.")


def test_a_missing_scope_is_named() -> None:
    error = InsufficientScope("users:read")
    assert (error.code, error.scope) == ("forbidden", "users:read")
    assert "users:read" in error.detail


def test_a_conflict_is_answered_as_unavailable() -> None:
    assert Contended.code == Unavailable.code
    assert Contended("busy", retry_after=1.0).retry_after == 1.0
