"""Dispatch: deliver a request's messages before it is answered, or put them into the queue."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence

from chalicelib.auth.principal import Principal, Scope
from chalicelib.delivery.broadcast import Broadcaster
from chalicelib.delivery.frames import Framing
from chalicelib.fanout.publisher import FanoutPublisher
from chalicelib.protocol.audience import Audience, AudienceKind
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Queued, Report
from chalicelib.runtime.deadlines import Deadline
from chalicelib.runtime.metrics import Metrics
from chalicelib.store.audience import Audiences, Page
from chalicelib.store.history import History

logger = logging.getLogger("herald.dispatch")

READING_SECONDS = 10.0  # an audience that isn't fully read by then is queued, however small


class Dispatcher:
    """Sends messages, as far as their sender's scopes allow it."""

    def __init__(
        self,
        *,
        audiences: Audiences,
        broadcaster: Broadcaster,
        publisher: FanoutPublisher | None,
        history: History,
        framing: Framing,
        inline_recipients: int,
        connections_per_user: int,
        metrics: Metrics,
    ) -> None:
        """Take the parts and the limits.

        Args:
            publisher: Queues messages with more than `inline_recipients` recipients. Without it,
                all messages are delivered inline.
            connections_per_user: The most connections that a user can have.
        """
        self._audiences = audiences
        self._broadcaster = broadcaster
        self._publisher = publisher
        self._history = history
        self._framing = framing
        self._inline_recipients = inline_recipients
        self._connections_per_user = connections_per_user
        self._metrics = metrics

    def send(
        self, messages: Sequence[Message], sender: Principal, deadline: Deadline
    ) -> Sequence[Report | Queued]:
        """Deliver the messages of one request, or queue all of them.

        Args:
            deadline: When delivery must end.

        Returns:
            A report for each message, or for each a note that it is queued.

        Raises:
            Forbidden, PayloadTooLarge, Unavailable: Nothing was sent.
            Interrupted: See `Broadcaster.send`.
        """
        for message in messages:
            sender.require(_scope_for(message))
        framer = self._framing.framer(messages, sender.tenant)
        audiences = [message.audience for message in messages]
        # First the history, then the recipients: a client that connects in between can resume.
        self._history.append(messages, sender.tenant)
        _log_accepted(messages, sender, framer.size)
        pages: Iterable[Page] = self._audiences.pages(audiences, sender.tenant)
        if self._publisher is not None and self._may_exceed_inline(audiences):
            pages, complete = self._read_ahead(iter(pages), deadline)
            if not complete:
                return self._queue(self._publisher, messages, sender)
        started = time.monotonic()
        reports = self._broadcaster.send(framer, pages, deadline)
        self._metrics.count("MessagesAccepted", len(messages))
        self._metrics.value("FanoutDuration", (time.monotonic() - started) * 1000)
        return reports

    def _queue(
        self, publisher: FanoutPublisher, messages: Sequence[Message], sender: Principal
    ) -> list[Queued]:
        self._history.mark_delayed(messages, sender.tenant)
        queued = publisher.publish(messages, sender)
        self._metrics.count("MessagesAccepted", len(messages))
        self._metrics.count("FanoutQueued", len(messages))
        return queued

    def _may_exceed_inline(self, audiences: Sequence[Audience]) -> bool:
        """Return whether the audiences could have too many recipients for inline delivery.

        If they can't, sending begins with the first page, before the others are read.
        """
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

    def _read_ahead(self, pages: Iterator[Page], deadline: Deadline) -> tuple[list[Page], bool]:
        """Read pages until there is one recipient too many for inline delivery, or time is up.

        Returns the pages, and whether they are complete. If not, they are dropped: the workers read
        the audience from its start, since jobs can share a read only if they start alike.
        """
        until = deadline.within(READING_SECONDS)
        read: list[Page] = []
        recipients = 0
        for page in pages:
            read.append(page)
            recipients += len(page.recipients)
            late = until.passed() and page.position is not None
            if late or recipients > self._inline_recipients:
                return read, False
        return read, True


def _log_accepted(messages: Sequence[Message], sender: Principal, size: int) -> None:
    logger.info(
        "accepted",
        extra={
            "tenant": sender.tenant or "",
            "sender": sender.user_id,
            "messageIds": [message.id for message in messages],
            "audiences": sorted({message.audience.kind for message in messages}),
            "bytes": size,
        },
    )


def _scope_for(message: Message) -> Scope:
    if message.audience.kind is AudienceKind.ALL:
        return Scope.MESSAGES_BROADCAST
    return Scope.MESSAGES_SEND
