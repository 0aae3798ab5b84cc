"""Which way messages go: delivered before the answer, or through the queue."""

import time
from collections.abc import Iterable, Iterator, Sequence

from chalicelib.auth.principal import Principal, Scope
from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.frames import Framer
from chalicelib.fanout.publisher import FanoutPublisher
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.encryption import Encryption
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Queued, Report
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Audiences, Page
from chalicelib.store.history import History

READING_SECONDS = 10.0  # what is not read by then goes through the queue, be it ever so few


class Dispatcher:
    """Sends what a principal may send."""

    def __init__(
        self,
        *,
        audiences: Audiences,
        broadcaster: Broadcaster,
        publisher: FanoutPublisher | None,
        history: History,
        encryption: Encryption,
        frame_bytes: int,
        inline_recipients: int,
        connections_per_user: int,
        metrics: Metrics,
    ) -> None:
        """Without a `publisher` all is delivered at once; with it, up to `inline_recipients`.
        `frame_bytes`: see `Framer`."""
        self._audiences = audiences
        self._broadcaster = broadcaster
        self._publisher = publisher
        self._history = history
        self._encryption = encryption
        self._frame_bytes = frame_bytes
        self._inline_recipients = inline_recipients
        self._connections_per_user = connections_per_user
        self._metrics = metrics

    def send(
        self, messages: Sequence[Message], sender: Principal, deadline: float
    ) -> Sequence[Report | Queued]:
        """Deliver the messages of one request, or queue them all; how that went, for each.

        `deadline` is in `time.monotonic` seconds. Raises Forbidden, PayloadTooLarge, and
        Unavailable, all before anything is sent; and what `Broadcaster.send` does.
        """
        for message in messages:
            sender.require(_scope_for(message))
        framer = Framer(messages, self._frame_bytes, sender.tenant, self._encryption)
        audiences = [message.audience for message in messages]
        self._history.append(messages, sender.tenant)  # and only then look who is there
        pages: Iterable[Page] = self._audiences.pages(audiences, sender.tenant)
        if self._publisher is not None and self._may_be_many(audiences):
            pages, all_read = self._read_ahead(iter(pages), deadline)
            if not all_read:
                self._history.mark_delayed(messages, sender.tenant)
                queued = self._publisher.publish(messages, sender)
                self._metrics.count("MessagesAccepted", len(messages))
                self._metrics.count("FanoutQueued", len(messages))
                return queued
        started = time.monotonic()
        reports = self._broadcaster.send(framer, pages, deadline)
        self._metrics.count("MessagesAccepted", len(messages))
        self._metrics.value("FanoutDuration", (time.monotonic() - started) * 1000)
        return reports

    def _may_be_many(self, audiences: Sequence[Audience]) -> bool:
        """Whether it takes reading to know that the recipients are not too many. Where they can't
        be, sending begins with the first page."""
        most = 0
        for audience in audiences:
            match audience.kind:
                case AudienceKind.USERS:
                    most += len(audience.names) * self._connections_per_user
                case AudienceKind.CONNECTIONS:
                    most += len(audience.names)
                case _:
                    return True
        return most > self._inline_recipients

    def _read_ahead(self, pages: Iterator[Page], deadline: float) -> tuple[list[Page], bool]:
        """The pages up to the end, or to one recipient too many; and whether these are all.

        Nothing is counted first: the workers begin anew, since jobs that begin alike go together.
        """
        until = min(deadline, time.monotonic() + READING_SECONDS)
        read: list[Page] = []
        recipients = 0
        for page in pages:
            read.append(page)
            recipients += len(page.recipients)
            late = time.monotonic() > until and page.position is not None
            if late or recipients > self._inline_recipients:
                return read, False
        return read, True


def _scope_for(message: Message) -> Scope:
    if message.audience.kind is AudienceKind.ALL:
        return Scope.MESSAGES_BROADCAST
    return Scope.MESSAGES_SEND
