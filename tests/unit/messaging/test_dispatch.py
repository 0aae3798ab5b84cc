"""Messages are kept in the history, then delivered inline or queued, by their audience's size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from chalicelib.auth.principal import Principal, Scope
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import Framing
from chalicelib.errors import InsufficientScope, PayloadTooLarge
from chalicelib.messaging.dispatch import Dispatcher
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Queued, Report
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Page
from tests.support.tables import recipient

INLINE = 4
PER_USER = 2
NEVER = 1e9
ALICE = Principal("alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND}))
BROADCASTER = Principal(
    "alice", 10**12, scopes=frozenset({Scope.MESSAGES_SEND, Scope.MESSAGES_BROADCAST})
)


@dataclass
class Parts:
    """Stands in for the parts of a Dispatcher, and records their calls in `calls`.

    The audience has a page for each number in `pages`, with that many recipients.
    """

    pages_of: Sequence[int] = (1,)
    calls: list[str] = field(default_factory=list)

    def pages(self, audiences: Sequence[Audience], tenant: str | None) -> Iterator[Page]:
        last = len(self.pages_of) - 1
        for number, count in enumerate(self.pages_of):
            self.calls.append("page")
            found = [(recipient(f"c-{number}-{one}", "bob"), 1) for one in range(count)]
            yield Page(found, None if number == last else str(number))

    def append(self, messages: Sequence[Message], tenant: str | None) -> None:
        self.calls.append("append")

    def mark_delayed(self, messages: Sequence[Message], tenant: str | None) -> None:
        self.calls.append("mark_delayed")

    def send(self, framer: Any, pages: Any, deadline: Deadline) -> list[Report]:
        self.calls.append("send")
        recipients = sum(len(page.recipients) for page in pages)
        return [Report(f"{recipients} recipients")]

    def publish(self, messages: Sequence[Message], sender: Principal) -> list[Queued]:
        self.calls.append("publish")
        return [Queued(message.id) for message in messages]


def message(kind: AudienceKind, *names: str, data: object = 1) -> Message:
    return Message(
        id="id",
        sender="alice",
        timestamp=EpochMs(1),
        audience=Audience(kind, names),
        type="message",
        data=data,
    )


EVERYBODY = message(AudienceKind.ALL)
GROUP = message(AudienceKind.GROUPS, "team")


def send(
    parts: Any,
    *messages: Message,
    sender: Principal = BROADCASTER,
    queue: bool = True,
    seconds: float = NEVER,
) -> Any:
    dispatcher = Dispatcher(
        audiences=parts,
        broadcaster=parts,
        publisher=parts if queue else None,
        history=parts,
        framing=Framing(32768, Encryption(None)),
        inline_recipients=INLINE,
        connections_per_user=PER_USER,
        metrics=Metrics("test"),
    )
    return dispatcher.send(messages, sender, Deadline.after(seconds))


# --- Refused messages


def test_a_message_to_all_needs_a_scope_of_its_own() -> None:
    parts = Parts()
    with pytest.raises(InsufficientScope, match="messages:broadcast"):
        send(parts, GROUP, EVERYBODY, sender=ALICE)
    assert parts.calls == []


def test_a_message_that_is_too_large_is_refused_before_it_is_kept() -> None:
    parts = Parts()
    with pytest.raises(PayloadTooLarge):
        send(parts, message(AudienceKind.GROUPS, "team", data="x" * 128 * 1024))
    assert parts.calls == []


# --- Inline or queued


def test_a_small_audience_is_delivered_inline() -> None:
    parts = Parts(pages_of=(2, 2))
    [report] = send(parts, GROUP)
    assert report.id == "4 recipients"
    assert parts.calls == ["append", "page", "page", "send"]


def test_a_large_audience_is_queued_as_soon_as_it_is_known_to_be_large() -> None:
    parts = Parts(pages_of=(2, 3, 9))
    assert send(parts, GROUP) == [Queued("id")]
    assert parts.calls == ["append", "page", "page", "mark_delayed", "publish"]


def test_without_a_queue_a_large_audience_is_delivered_inline() -> None:
    parts = Parts(pages_of=(2, 3, 9))
    [report] = send(parts, EVERYBODY, queue=False)
    assert report.id == "14 recipients"
    assert parts.calls == ["append", "send", "page", "page", "page"]


@pytest.mark.parametrize(
    "small",
    [
        message(AudienceKind.USERS, *"ab"),
        message(AudienceKind.CONNECTIONS, *"abcd"),
    ],
)
def test_an_audience_that_cannot_be_large_is_delivered_while_it_is_read(small: Message) -> None:
    parts = Parts(pages_of=(2, 2))
    send(parts, small)
    assert parts.calls == ["append", "send", "page", "page"]


@pytest.mark.parametrize(
    "large",
    [
        [message(AudienceKind.USERS, *"abc")],
        [message(AudienceKind.CONNECTIONS, *"abcde")],
        [message(AudienceKind.USERS, "a"), message(AudienceKind.CONNECTIONS, *"abc")],
    ],
)
def test_an_audience_that_may_be_large_is_read_before_it_is_delivered(large: list[Message]) -> None:
    parts = Parts()
    send(parts, *large)
    assert parts.calls == ["append", "page", "send"]


@pytest.mark.parametrize("unread", [1, 0])
def test_an_audience_that_cannot_be_read_in_time_is_queued(unread: int) -> None:
    parts = Parts(pages_of=(1,) * (1 + unread))
    send(parts, GROUP, seconds=0.0)
    last = ["mark_delayed", "publish"] if unread else ["send"]
    assert parts.calls == ["append", "page", *last]
