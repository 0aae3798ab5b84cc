"""The main job: audience → delivery → consequences → report."""

import logging
import time
from collections.abc import Iterator, Sequence

from chalicelib.audience import Audiences
from chalicelib.consequences import SETTLING_SECONDS, Consequences
from chalicelib.delivery import Delivery
from chalicelib.encryption import Encryption
from chalicelib.errors import Unavailable
from chalicelib.frames import Framer
from chalicelib.lanes import Parcel
from chalicelib.messages import AudienceKind, Interrupted, Message, Report, Result
from chalicelib.principal import Principal, Scope
from chalicelib.records import Recipient
from chalicelib.terminate import Terminator

MAX_EXPIRED = 1000  # connections that one broadcast ends; the sweep, or the next, ends more

logger = logging.getLogger("herald.broadcast")


class Broadcaster:
    """Sends messages to their audiences and says honestly what became of each."""

    def __init__(
        self,
        audiences: Audiences,
        delivery: Delivery,
        consequences: Consequences,
        terminator: Terminator,
        encryption: Encryption,
        frame_bytes: int,
    ) -> None:
        """`frame_bytes`: see `Framer`."""
        self._audiences = audiences
        self._delivery = delivery
        self._consequences = consequences
        self._terminator = terminator
        self._encryption = encryption
        self._frame_bytes = frame_bytes

    def send(self, messages: Sequence[Message], sender: Principal, deadline: float) -> list[Report]:
        """Deliver `messages`, to each connection in order; a report for each message.

        All that one connection gets travels together. `deadline` is in `time.monotonic` seconds.
        Before anything is sent, raises Forbidden, PayloadTooLarge, and Unavailable when storage
        is. When storage fails later, what was sent until then is in the `reports` of what is
        raised.
        """
        for message in messages:
            sender.require(_scope_for(message))
        framer = Framer(messages, self._frame_bytes, sender.tenant, self._encryption)
        reports = {message.id: Report(message.id) for message in messages}
        started = time.monotonic()
        retries = 0
        settlement = self._consequences.begin()
        expired: list[Recipient] = []
        try:
            parcels = self._parcels(messages, sender.tenant, framer, expired)
            for outcome in self._delivery.deliver(parcels, deadline - SETTLING_SECONDS):
                recipient = outcome.recipient
                retries += max(0, outcome.tries - 1)
                for message in outcome.frame.messages:
                    reports[message.id].add(
                        recipient.connection_id, recipient.user_id, outcome.result, outcome.reason
                    )
                if outcome.result is not Result.DELIVERED:
                    settlement.add(outcome)
        except Unavailable as error:
            raise Interrupted(error, list(reports.values())) from error
        finally:
            settlement.finish(deadline)
            self._terminator.expire(expired[:MAX_EXPIRED], deadline)
            self._log(list(reports.values()), retries, time.monotonic() - started)
        return list(reports.values())

    def _parcels(
        self,
        messages: Sequence[Message],
        tenant: str | None,
        framer: Framer,
        expired: list[Recipient],
    ) -> Iterator[list[Parcel]]:
        """What each connection gets. Those whose token has expired get nothing: they are added to
        `expired`."""
        audiences = [message.audience for message in messages]
        for page in self._audiences.pages(audiences, tenant):
            now = time.time()
            expired += [recipient for recipient, _ in page if recipient.token_until <= now]
            yield [
                Parcel(recipient, framer.frames(selection, recipient.user_id))
                for recipient, selection in page
                if recipient.token_until > now
            ]

    @staticmethod
    def _log(reports: Sequence[Report], retries: int, seconds: float) -> None:
        """A line for each message; what they shared, its time and its retries, in each."""
        for report in reports:
            logger.info(
                "broadcast",
                extra={
                    "messageId": report.id,
                    **{str(result): count for result, count in report.counts.items()},
                    "retries": retries,
                    "durationMs": round(seconds * 1000),
                },
            )


def _scope_for(message: Message) -> Scope:
    if message.audience.kind is AudienceKind.ALL:
        return Scope.MESSAGES_BROADCAST
    return Scope.MESSAGES_SEND
