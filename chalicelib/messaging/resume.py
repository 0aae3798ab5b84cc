"""Resume: find the messages that a client missed while it was away, and send them.

A client names the last message that it has. It missed each later message to its user, its groups
and its tenant, except where the audience excludes it. It may also have missed a message with an
earlier id that was sent later. Such a message can't be distinguished from one that arrived in time,
unless one execution environment sent both. Messages in doubt are sent too, and the client drops the
ids that it has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from chalicelib.auth.principal import Principal
from chalicelib.clock import EpochMs
from chalicelib.delivery.frames import Framing, encrypted_text
from chalicelib.delivery.parcel import Delivery, Parcel
from chalicelib.errors import BadRequest, Unavailable
from chalicelib.messaging.missed import DEFAULT_LIMITS, Missed, MissedMessage, ResumeLimits
from chalicelib.protocol.reports import Result
from chalicelib.protocol.ulid import timestamp_of
from chalicelib.runtime.deadlines import Deadline
from chalicelib.store.history import REACH_BACK_MS, History
from chalicelib.store.items import Recipient, connection_ids
from chalicelib.store.memberships import Joined, Memberships, joined_since
from chalicelib.store.schema import ACTIVITY_PREFIX, Item, everyone_stream, user_stream


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
        history: History,
        memberships: Memberships,
        delivery: Delivery,
        framing: Framing,
        limits: ResumeLimits = DEFAULT_LIMITS,
    ) -> None:
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
        *,
        user: Item,
        now: EpochMs,
        deadline: Deadline,
    ) -> Resumed:
        """Send what a connection missed, the oldest message first.

        Args:
            principal: The user of the connection.
            recipient: The connection.
            after: The id of the last message that the client has; see `parse_after`.
            user: The user's item, as it was before this frame.
            now: The time.
            deadline: When delivery must end.

        Raises:
            Unavailable: Storage or the connection failed; some messages may have been sent.
        """
        if not self._history.seconds:
            return Resumed(0, complete=False)
        had_at = timestamp_of(after)
        kept_since = EpochMs(now - self._history.seconds * 1000)
        since = EpochMs(max(min(had_at, now), kept_since) - REACH_BACK_MS)
        missed = self._missed(
            principal, recipient, after, user=user, now=now, since=since, kept_since=kept_since
        )
        sent = 0
        for messages in missed.chunks():
            self._send(messages, principal, recipient, deadline)
            sent += len(messages)
        return Resumed(sent, complete=had_at >= kept_since and not missed.lost)

    def _missed(
        self,
        principal: Principal,
        recipient: Recipient,
        after: str,
        *,
        user: Item,
        now: EpochMs,
        since: EpochMs,
        kept_since: EpochMs,
    ) -> Missed:
        """Read the first pages of two streams, and with them what else there is to read.

        For the arguments see `resume` and `Missed`.
        """
        of_open = self._of_open(principal, recipient, user)  # first; see `Memberships.of_open`
        own_stream = user_stream(principal.tenant, principal.user_id)
        all_stream = everyone_stream(principal.tenant)
        own = self._history.first_page(own_stream, since)
        records = self._memberships.records(principal) if own.others is None else own.others
        to_all = self._history.first_page(all_stream, since)
        return Missed(
            self._history,
            principal,
            recipient,
            after,
            joined=joined_since(principal, of_open, records, now),
            since=since,
            kept_since=kept_since,
            first_pages={own_stream: own, all_stream: to_all},
            may_be_delayed=self._history.may_be_delayed(to_all, kept_since),
            limits=self._limits,
        )

    def _of_open(self, principal: Principal, recipient: Recipient, user: Item) -> list[Joined]:
        """Return when each of the user's open connections joined its groups.

        A connection that has sent no frame before is in the groups that it joined as it opened.
        """
        if not principal.groups:
            return []
        others = connection_ids(user)
        if ACTIVITY_PREFIX + recipient.connection_id in user:
            return self._memberships.of_open(others)
        others.remove(recipient.connection_id)
        joined = dict.fromkeys(principal.own_groups, recipient.connected_at)
        return [joined, *self._memberships.of_open(others)]

    def _send(
        self,
        messages: Sequence[MissedMessage],
        principal: Principal,
        recipient: Recipient,
        deadline: Deadline,
    ) -> None:
        frames = self._framing.frames(self._texts(messages, principal))
        for outcome in self._delivery.deliver([[Parcel(recipient, frames)]], deadline):
            if outcome.result is not Result.DELIVERED:
                raise Unavailable(
                    f"not all missed messages could be sent ({outcome.reason}): resume again",
                    retry_after=1.0,
                )

    def _texts(self, messages: Sequence[MissedMessage], principal: Principal) -> list[bytes]:
        """Return the texts that the user's frames have of messages."""
        if not any(message.encrypted for message in messages):
            return [message.text for message in messages]
        encrypter = self._framing.encryption.encrypter()
        return [
            encrypted_text(message.text, encrypter, principal.key)
            if message.encrypted
            else message.text
            for message in messages
        ]


def parse_after(after: str) -> str:
    """Return the id of a message to resume after. Raises BadRequest if it isn't one."""
    try:
        timestamp_of(after)
    except ValueError:
        raise BadRequest("after must be the id of a message") from None
    return after
