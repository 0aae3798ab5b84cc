"""Resume: find the messages that a client missed while it was away, and send them.

A client names the last message that it has. It missed each later message to its user, its groups
and its tenant, except where the audience excludes it. It may also have missed a message with an
earlier id that was sent later. Such a message can't be distinguished from one that arrived in time,
unless one execution environment sent both. Messages in doubt are sent too, and the client drops the
ids that it has seen.
"""

from dataclasses import dataclass

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import Framing
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import BadRequest, Unavailable
from chalicelib.messaging.missed import DEFAULT_LIMITS, Missed, ResumeLimits
from chalicelib.protocol.messages import Message
from chalicelib.protocol.reports import Result
from chalicelib.protocol.ulid import timestamp_of
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.history import REACH_BACK_MS, History
from chalicelib.store.items import Recipient
from chalicelib.store.memberships import Memberships
from chalicelib.store.users import Users


@dataclass(frozen=True, slots=True)
class Resumed:
    """The number of messages that were sent, and whether they are all that the client missed."""

    count: int
    complete: bool


class Resumer:
    """Sends clients the messages that they missed."""

    def __init__(
        self,
        *,
        users: Users,
        history: History,
        memberships: Memberships,
        delivery: Delivery,
        framing: Framing,
        limits: ResumeLimits = DEFAULT_LIMITS,
    ) -> None:
        self._users = users
        self._history = history
        self._memberships = memberships
        self._delivery = delivery
        self._framing = framing
        self._limits = limits

    def resume(
        self,
        principal: Principal,
        recipient: Recipient,
        after: str,
        now: EpochMs,
        deadline: Deadline,
    ) -> Resumed:
        """Send what a connection missed, the oldest message first.

        Args:
            principal: The user of the connection.
            recipient: The connection.
            after: The id of the last message that the client has.
            now: The time.
            deadline: When delivery must end.

        Raises:
            BadRequest: `after` is not an id.
            RateLimited: The user resumes too often.
            Unavailable: Storage or the connection failed; some messages may have been sent.
        """
        try:
            had_at = timestamp_of(after)
        except ValueError:
            raise BadRequest("after must be the id of a message") from None
        open_now = self._users.charge_resume(principal, now)
        if not self._history.seconds:
            return Resumed(0, complete=False)
        kept_since = EpochMs(now - self._history.seconds * 1000)
        since = EpochMs(max(min(had_at, now), kept_since) - REACH_BACK_MS)
        missed = Missed(
            self._history,
            principal,
            recipient,
            after,
            joined=self._memberships.joined_since(principal, open_now, now),
            since=since,
            kept_since=kept_since,
            limits=self._limits,
        )
        sent = 0
        for messages in missed.chunks():
            self._send(messages, principal, recipient, deadline)
            sent += len(messages)
        return Resumed(sent, complete=had_at >= kept_since and not missed.lost)

    def _send(
        self,
        messages: list[Message],
        principal: Principal,
        recipient: Recipient,
        deadline: Deadline,
    ) -> None:
        every_message = (1 << len(messages)) - 1
        framer = self._framing.framer(messages, principal.tenant)
        frames = framer.frames(every_message, principal.user_id)
        for outcome in self._delivery.deliver([[Parcel(recipient, frames)]], deadline):
            if outcome.result is not Result.DELIVERED:
                raise Unavailable(
                    f"not all missed messages could be sent ({outcome.reason}): resume again",
                    retry_after=1.0,
                )
