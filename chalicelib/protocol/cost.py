"""The cost of a request: the copies that it writes or sends, and the units that its sender pays.

No I/O. A *copy* is one kilobyte of a message for one name in the history, or 32 KB of a frame for
one recipient. A request costs as much as its writes or its sends, whichever are more: one *unit*
for each 100 copies begun, and at least one.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from chalicelib import aws_limits
from chalicelib.protocol.audience import AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.protocol.strict_json import encode

COPIES_PER_UNIT = 100
WRITTEN_BYTES = 1024  # DynamoDB bills writes in steps of this size
SENT_BYTES = aws_limits.FRAME_BYTES  # API Gateway meters messages in steps of this size


class Debt(NamedTuple):
    """What a sender owes after a charge: units, and how many of them count towards the quota."""

    units: int
    quota: int


class Bill:
    """The units of one request, as its copies become known."""

    def __init__(self, *, messages: int, paid: int) -> None:
        """Open the bill of a request for which `paid` units have been charged."""
        self._messages = messages
        self._paid = paid
        self._sent = 0

    @property
    def room(self) -> int:
        """The copies that are paid for and not sent yet."""
        return max(0, self._paid * COPIES_PER_UNIT - self._sent)

    def add(self, copies: int) -> Debt | None:
        """Count copies that are about to be sent; return what is owed for them, if anything.

        What it returns counts as paid.
        """
        self._sent += copies
        units = units_of(self._sent)
        if units <= self._paid:
            return None
        # The quota counts a request's messages or its units, whichever are more.
        quota = max(self._messages, units) - max(self._messages, self._paid)
        debt = Debt(units - self._paid, quota)
        self._paid = units
        return debt


def units_of(copies: int) -> int:
    """Return the units of a request that writes or sends so many copies."""
    return max(1, _steps(copies, COPIES_PER_UNIT))


def sent_copies(frame_bytes: int) -> int:
    """Return the copies of one frame to one recipient."""
    return max(1, _steps(frame_bytes, SENT_BYTES))


def written_copies(messages: Iterable[Message]) -> int:
    """Return the copies that the history writes of messages that it keeps."""
    return sum(len(names_of(message)) * copies_per_name(message) for message in messages)


def stored_copies(messages: Iterable[Message]) -> int:
    """Return the copies that are written to store messages once, for the workers of the fan-out."""
    return sum(map(copies_per_name, messages))


def copies_per_name(message: Message) -> int:
    """Return the copies that the history writes of a message for each name of its audience."""
    return copies_of(encode(without_names(message).to_dict()))


def copies_of(content: bytes) -> int:
    """Return the copies of one item with this content. (It is stored in less, if it compresses.)"""
    return _steps(len(content), WRITTEN_BYTES)


def names_of(message: Message) -> tuple[str, ...]:
    """Return the names under which the history keeps a message; everyone has one, `""`."""
    audience = message.audience
    match audience.kind:
        case AudienceKind.USERS:
            return tuple(name for name in audience.names if name not in audience.except_users)
        case AudienceKind.ALL:
            return ("",)
        case _:
            return audience.names


def without_names(message: Message) -> Message:
    """Return a message as each of its names' streams holds it."""
    return replace(message, audience=message.audience._replace(names=()))


def _steps(size: int, step: int) -> int:
    """Return the number of steps that are begun."""
    return -(-size // step)
